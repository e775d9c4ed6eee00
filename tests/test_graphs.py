"""Steps that are recorded once and replayed, as CUDA graphs are, train as steps that are computed anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from conftest import RECIPES, Train, load_recipe
from recorder import Recording, what_outlives
from torch import Tensor

from gan_dist.data.datasets import describe
from gan_dist.engine.graphs import Graphs
from gan_dist.models import Growing
from gan_dist.parallel.distributed import Distributed
from gan_dist.parallel.signals import StopSignals
from gan_dist.wiring import iteration
from gan_dist.wiring.build import WiredRun, build
from gan_dist.wiring.data import source_of
from gan_dist.wiring.modes import why_not_captured

QUIET = [f"{section}.every_kimg=0" for section in ("log", "sample", "metrics", "checkpoint")]
# A schedule, a warm-up, a lazy penalty and flips: all of them follow the number of images seen.
SETTINGS = [*QUIET, "tracking.wandb=disabled", "train.device=cpu", "train.batch_size=8", "data.hflip=true"]
RATES = ["optim.G.warmup_kimg=0.1", "optim.D.schedule=cosine", "loss.gamma_decay=0.1"]
ITERATIONS = 16  # of each kind of D step 3 are warm-up, one is recorded, and the rest are replays


@pytest.fixture(scope="module")
def dist() -> Distributed:
    return Distributed("fp32", cpu=True)


def _build(recipe: str, folder: Path, dist: Distributed, recorded: bool, *overrides: str) -> WiredRun:
    settings = [s for s in SETTINGS if "hflip" not in s or load_recipe(recipe).data.name not in ("ring", "grid")]
    # On a CPU, RMSprop has no kernel that reads the learning rate on the device.
    rates = RATES if load_recipe(recipe).optim.G.name != "RMSprop" else []
    config = load_recipe(recipe, *settings, "loss.penalty_interval=2", *rates, *overrides)
    folder.mkdir()
    info = describe(source_of(config.data))
    start = info.num_images // 8 * 8 - 40  # the first epoch ends soon
    config.train.kimg = (start + 8 * ITERATIONS * config.train.n_critic) / 1000
    made = Graphs(Recording(), print) if recorded else None
    with mock.patch.object(iteration, "make_graphs", return_value=made):
        run = build(config, info, folder, None, dist)
    run.state.nimg = start
    return run


def _replays(run: WiredRun) -> int:
    graphs = run.trainer.step.graphs
    assert graphs is not None
    assert isinstance(graphs.capture, Recording)
    return graphs.capture.replays


def _train(run: WiredRun, spoilt: int | None = None) -> tuple[list[Any], list[dict[str, float]]]:
    """Make some iterations; returns the gradient norms and what the log would get."""
    norms, logged = [], []
    for i in range(ITERATIONS):
        if i == spoilt:
            networks = run.state.G, run.state.D, run.state.G_ema
            saved = [{k: v.clone() for k, v in network.state_dict().items()} for network in networks]
            next(run.state.G.parameters()).detach().fill_(torch.nan)
        norms.append([norm.item() for norm in run.trainer.step(run.trainer.batches)])
        if i == spoilt:
            for network, before in zip(networks, saved):
                network.load_state_dict(before)
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
    assert _replays(replayed) >= 12
    assert str(found) == str(expected), "norms and figures"  # as text, in which NaN equals NaN
    states = what_outlives(eager), what_outlives(replayed)
    assert states[0].keys() == states[1].keys()
    assert [name for name, tensor in states[0].items() if not torch.equal(tensor, states[1][name])] == []
    if fused:
        assert found[1][-1]["skipped_D"] > 0


def test_all_micro_batches_are_in_the_graph(dist: Distributed, tmp_path: Path) -> None:
    found = []
    for recorded in (False, True):
        run = _build("digits", tmp_path / str(recorded), dist, recorded, "train.micro_batch_size=3")
        found.append((*_train(run), {k: v.tolist() for k, v in what_outlives(run).items()}))
    assert found[0] == found[1]


def test_a_run_goes_back_under_graphs(dist: Distributed, tmp_path: Path) -> None:
    """Moments and weights are restored; a graph that still wrote to those of before would train nothing."""
    found = []
    for recorded in (False, True):
        every = ["checkpoint.every_kimg=0.04", "train.on_nonfinite=rollback"]
        run = _build("digits", tmp_path / str(recorded), dist, recorded, *every)
        hooked = run.trainer.step.d_step
        sick = run.state.nimg + 80

        def d_step(images: Tensor, labels: Tensor, run: Any = run, sick: int = sick, hooked: Any = hooked) -> Any:
            if run.state.nimg == sick and not run.state.retries:
                next(run.state.D.parameters()).detach().fill_(torch.nan)
            return hooked(images, labels)

        run.trainer.step.d_step = d_step  # type: ignore[method-assign]
        assert run.train(StopSignals())
        assert run.state.retries == 1
        found.append({k: v.tolist() for k, v in what_outlives(run).items()})
        if recorded:
            assert _replays(run) >= 12
    assert found[0] == found[1]


class Full(Recording):
    """A device whose memory is too small for a capture."""

    def __call__(self, function: Any, inputs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_without_memory_for_graphs_the_run_goes_on() -> None:
    """With one line; and the call that could not be captured is made, as are all later ones."""
    said: list[str] = []
    graphs = Graphs(Full(), said.append)
    x = torch.zeros(())
    for i in range(1, 8):
        assert graphs("the step", lambda y: x.add_(1) + y, torch.ones(())) == i + 1
    assert said == ["no CUDA graphs from here on: there is not enough GPU memory to capture the step"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_outlives_an_iteration_keeps_its_address(recipe: str, dist: Distributed, tmp_path: Path) -> None:
    run = _build(recipe, tmp_path / "run", dist, recorded=False)
    step = run.trainer.step
    for update in (step.update_G, step.update_D):
        update.keeps_gradients = not update.fits_graph  # as under graphs
    if isinstance(run.state.G, Growing):
        run.trainer.batches.growth.stage_at = lambda _: run.trainer.batches.growth.stage
    step(run.trainer.batches)
    step(run.trainer.batches)
    before = {name: tensor.data_ptr() for name, tensor in what_outlives(run).items()}
    gradients = [p.grad.data_ptr() for u in (step.update_G, step.update_D) for p in u.parameters if p.grad is not None]
    step.stats.read()
    step(run.trainer.batches)
    step(run.trainer.batches)
    run.trainer.batches.close()
    assert {name: tensor.data_ptr() for name, tensor in what_outlives(run).items()} == before
    if not step.update_G.fits_graph:
        now = [p.grad.data_ptr() for u in (step.update_G, step.update_D) for p in u.parameters if p.grad is not None]
        assert now == gradients


def test_auto_captures_every_recipe_that_does_not_grow() -> None:
    for recipe in RECIPES:
        config = load_recipe(recipe)
        reason = why_not_captured(config, on_gpu=True, several=False, precision=config.train.gpu_precision)
        assert reason == ("the networks grow" if config.model.name == "pggan" else ""), recipe


@pytest.mark.parametrize(
    ("settings", "facts", "reason"),
    [
        ([], {"on_gpu": False}, "no GPU"),
        ([], {"several": True}, "exchange gradients"),
        (["optim.D.name=Adafactor"], {}, "optim.D.name=Adafactor reads its learning rate on the host"),
        (["optim.G.name=RMSprop"], {"precision": "fp16"}, "optim.G.name=RMSprop skips steps of fp16"),
        (["optim.G.name=RMSprop", "train.on_nonfinite=skip"], {}, "train.on_nonfinite=skip"),
        (["optim.G.args={foreach: true}"], {}, ""),
    ],
)
def test_why_a_run_is_not_captured(settings: list[str], facts: dict[str, Any], reason: str) -> None:
    known = {"on_gpu": True, "several": False, "precision": "tf32", **facts}
    found = why_not_captured(load_recipe("digits", *settings), **known)
    assert reason in found
    assert bool(found) == bool(reason)


def test_always_is_refused_where_it_is_not_possible(train: Train) -> None:
    result = train("train.cuda_graphs=always")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "train.cuda_graphs=always is not possible: there is no GPU; set train.cuda_graphs=auto" in result.stderr
