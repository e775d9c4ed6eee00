"""Steps that are recorded once and replayed, as CUDA graphs are, train as steps that are computed anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import RECIPES, load_recipe
from recorder import RecordedGraphs
from torch import Tensor

from gan_dist.data.datasets import describe
from gan_dist.models import Growing
from gan_dist.parallel.distributed import Distributed
from gan_dist.wiring.build import WiredRun, build
from gan_dist.wiring.data import source_of

QUIET = [f"{section}.every_kimg=0" for section in ("log", "sample", "metrics", "checkpoint")]
# A schedule, a warm-up, a lazy penalty and flips: all of them follow the number of images seen.
SETTINGS = [*QUIET, "tracking.wandb=disabled", "train.device=cpu", "train.batch_size=8", "data.hflip=true"]
MOVING = ["loss.penalty_interval=2", "loss.gamma_decay=0.1", "optim.G.warmup_kimg=0.1", "optim.D.schedule=cosine"]
ITERATIONS = 16  # of each kind of D step 3 are warm-up, one is recorded, and the rest are replays


@pytest.fixture(scope="module")
def dist() -> Distributed:
    return Distributed("fp32", cpu=True)


def _build(recipe: str, folder: Path, dist: Distributed, recorded: bool, *overrides: str) -> WiredRun:
    settings = [s for s in SETTINGS if "hflip" not in s or load_recipe(recipe).data.name not in ("ring", "grid")]
    config = load_recipe(recipe, *settings, *MOVING, *overrides)
    config.train.kimg = 1.0
    folder.mkdir()
    run = build(config, describe(source_of(config.data)), folder, None, dist)
    if recorded:
        run.trainer.step.graphs = RecordedGraphs()
        for update in (run.trainer.step.update_G, run.trainer.step.update_D):
            update.keeps_gradients = not update.fits_graph
    return run


def _state(run: WiredRun) -> dict[str, Tensor]:
    """Everything that outlives an iteration, but the gradients."""
    state, step = run.state, run.trainer.step
    found = {f"{n}.{k}": t for n in ("G", "D", "G_ema") for k, t in getattr(state, n).state_dict().items()}
    for name in ("opt_G", "opt_D"):
        for i, moments in enumerate(getattr(state, name).state.values()):
            found |= {f"{name}.{i}.{key}": value for key, value in moments.items() if isinstance(value, Tensor)}
    found |= {f"means.{names}": sums for names, sums in step.stats._sums.items()}
    return found | {f"scalar.{name}": number for name, number in step.draws.scalars.items()}


def _train(run: WiredRun, spoilt: int | None = None) -> tuple[list[Any], list[dict[str, float]]]:
    """Make some iterations; returns the gradient norms and what the log would get."""
    norms, logged = [], []
    for i in range(ITERATIONS):
        if i == spoilt:
            with torch.no_grad():
                saved = [p.clone() for p in run.state.G.parameters()]
                next(run.state.G.parameters()).fill_(torch.nan)
        norms.append([norm.item() for norm in run.trainer.step(run.trainer.batches)])
        if i == spoilt:
            with torch.no_grad():
                for parameter, before in zip(run.state.G.parameters(), saved):
                    parameter.copy_(before)
                for parameter, average in zip(run.state.G.parameters(), run.state.G_ema.parameters()):
                    average.copy_(parameter)
        if i % 5 == 4:
            logged.append(run.trainer.step.stats.read())
    run.trainer.batches.close()
    return norms, logged


CAPTURED = [recipe for recipe in RECIPES if not load_recipe(recipe).growth.stable_kimg]


@pytest.mark.parametrize("recipe", CAPTURED)
def test_replayed_steps_have_the_same_bits(recipe: str, dist: Distributed, tmp_path: Path) -> None:
    """Over a schedule, a lazy interval, epochs' ends, log events and a step whose gradients are not finite."""
    fused = all(getattr(load_recipe(recipe).optim, name).name != "RMSprop" for name in ("G", "D"))
    skip = ["train.on_nonfinite=skip"] if fused else []
    eager, replayed = (_build(recipe, tmp_path / str(r), dist, r, *skip) for r in (False, True))
    spoilt = ITERATIONS - 3 if fused else None
    expected, found = _train(eager, spoilt), _train(replayed, spoilt)
    graphs = replayed.trainer.step.graphs
    assert isinstance(graphs, RecordedGraphs)
    assert min(graphs.replays.values()) >= 4, graphs.replays
    assert str(found) == str(expected), "norms and figures"  # as text, in which NaN equals NaN
    states = _state(eager), _state(replayed)
    assert states[0].keys() == states[1].keys()
    assert [name for name, tensor in states[0].items() if not torch.equal(tensor, states[1][name])] == []
    if fused:
        assert found[1][-1]["skipped_D"] > 0


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_outlives_an_iteration_keeps_its_address(recipe: str, dist: Distributed, tmp_path: Path) -> None:
    run = _build(recipe, tmp_path / "run", dist, recorded=False)
    step = run.trainer.step
    for update in (step.update_G, step.update_D):
        update.keeps_gradients = not update.fits_graph
    if isinstance(run.state.G, Growing):
        run.trainer.batches.growth.stage_at = lambda _: run.trainer.batches.growth.stage
    step(run.trainer.batches)
    step(run.trainer.batches)
    before = {name: tensor.data_ptr() for name, tensor in _state(run).items()}
    gradients = [p.grad.data_ptr() for u in (step.update_G, step.update_D) for p in u.parameters if p.grad is not None]
    step.stats.read()
    step(run.trainer.batches)
    step(run.trainer.batches)
    run.trainer.batches.close()
    assert {name: tensor.data_ptr() for name, tensor in _state(run).items()} == before
    if not step.update_G.fits_graph:
        now = [p.grad.data_ptr() for u in (step.update_G, step.update_D) for p in u.parameters if p.grad is not None]
        assert now == gradients
