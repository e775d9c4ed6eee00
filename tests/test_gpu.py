"""Tests that need a GPU."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from conftest import RECIPES, Train, load_recipe
from recorder import what_outlives
from resume_worker import COMMON, STOPS
from resume_worker import train as go_on

from gan_dist import rng
from gan_dist.checkpoint.find import FILES
from gan_dist.data.datasets import describe
from gan_dist.engine.graphs import WARM_UP
from gan_dist.kernels.switches import numerics
from gan_dist.parallel.accelerate_adapter import forget_state
from gan_dist.parallel.distributed import Distributed
from gan_dist.rng import Purpose
from gan_dist.settings.config import load_config
from gan_dist.wiring.build import build
from gan_dist.wiring.data import source_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU and a CUDA build of torch"),
]


@pytest.fixture(autouse=True)
def _any_precision() -> None:
    forget_state()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gpu_trains_like_the_cpu(train: Train, tmp_path: Path, precision: str) -> None:
    assert train("run.dir=gpu", "train.device=auto", f"train.precision={precision}").returncode == 0
    assert train("run.dir=cpu").returncode == 0
    gpu, cpu = ((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0] for name in ("gpu", "cpu"))
    tolerance = 1e-3 if precision == "fp32" else 2e-2
    assert json.loads(gpu)["loss_D"] == pytest.approx(json.loads(cpu)["loss_D"], rel=tolerance)


def test_draws_are_decided_as_on_the_cpu() -> None:
    """Integers, labels, flips, moves and the order of the images are equal; latents may differ in the last bit."""
    cuda = torch.device("cuda")
    bits, there = (rng.words(3, Purpose.AUGMENT_REAL, 2**40, 1000, 7, device) for device in ("cpu", cuda))
    assert torch.equal(there.cpu(), bits)
    assert torch.equal(rng.below(there, 17).cpu(), rng.below(bits, 17))
    thresholds = rng.label_thresholds(torch.full((10,), 0.1))
    drawn = [rng.labels(3, Purpose.D_LABEL, 0, 10_000, on) for on in (thresholds, thresholds.to(cuda))]
    assert torch.equal(drawn[1].cpu(), drawn[0])
    flips = [rng.coins(3, Purpose.FLIP, 0, 10_000, device) for device in ("cpu", cuda)]
    assert torch.equal(flips[1].cpu(), flips[0])
    orders = [rng.permuted(3, Purpose.ORDER, 5, torch.arange(1797, device=on), 1797) for on in ("cpu", cuda)]
    assert torch.equal(orders[1].cpu(), orders[0])
    like = torch.empty(0, dtype=torch.float64, device=cuda)
    latents = [rng.latents(3, Purpose.D_LATENT, 0, 1000, 64, on) for on in (None, like)]
    torch.testing.assert_close(latents[1].cpu(), latents[0], rtol=1e-14, atol=1e-15)


def test_iteration_never_waits_for_the_gpu(tmp_path: Path) -> None:
    config = load_config(
        None, ["metrics.every_kimg=0", "tracking.wandb=disabled", "data.hflip=true", "loss.r1_gamma=1"]
    )
    run = build(config, describe(source_of(config.data)), tmp_path, None, Distributed("fp32"))
    trainer, graphs = run.trainer, run.trainer.step.graphs
    assert graphs is not None
    with graphs.capture.on_stream():
        for _ in range(WARM_UP + 1):  # allocations and kernels of the first iterations, and the capture
            trainer.step(trainer.batches)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(3):
                trainer.step(trainer.batches)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def _iterations(folder: Path, recipe: str, *settings: str) -> dict[str, list[float]]:
    """Twelve iterations on the GPU; returns everything that outlives an iteration, and the figures."""
    config = load_recipe(recipe, *COMMON, *settings)
    config.train.precision = config.train.gpu_precision
    folder.mkdir()
    with numerics(config.train.precision, exact=True):
        run = build(config, describe(source_of(config.data)), folder, None, Distributed(config.train.precision))
        graphs = run.trainer.step.graphs
        with graphs.capture.on_stream() if graphs else nullcontext():
            for _ in range(12):
                run.trainer.step(run.trainer.batches)
            found = {name: tensor.flatten().tolist() for name, tensor in what_outlives(run).items()}
            run.trainer.batches.close()
            assert (run.trainer.step.update_D.compiled is not None) == ("train.compile=true" in settings)
            assert (graphs is not None) == ("train.cuda_graphs=always" in settings)
            return found | {name: [value] for name, value in run.trainer.step.stats.read().items()}


@pytest.mark.parametrize("recipe", [name for name in RECIPES if "pggan" not in name])
def test_captured_steps_have_the_bits_of_eager_ones(recipe: str, tmp_path: Path) -> None:
    captured = _iterations(tmp_path / "captured", recipe, "train.cuda_graphs=always")
    eager = _iterations(tmp_path / "eager", recipe, "train.cuda_graphs=never")
    assert [name for name, values in eager.items() if captured[name] != values] == []


@pytest.mark.parametrize("recipe", ["digits", "r3gan_fashion_mnist", "sngan_projection_cifar10"])
def test_compiled_steps_repeat_and_can_be_captured(recipe: str, tmp_path: Path) -> None:
    settings = ["train.compile=true", "train.cuda_graphs=always"]
    first, second = (_iterations(tmp_path / name, recipe, *settings) for name in ("first", "second"))
    plain = _iterations(tmp_path / "plain", recipe, "train.compile=true", "train.cuda_graphs=never")
    assert first == second
    assert [name for name, values in plain.items() if first[name] != values] == []
    eager = _iterations(tmp_path / "eager", recipe, "train.cuda_graphs=never")
    assert first["loss_D"] == pytest.approx(eager["loss_D"], rel=5e-2)


# The figures of each iteration are logged, so that those of a resumed run are means over the same iterations.
SETTINGS = [
    *COMMON,
    *("log.every_kimg=0.008", "metrics.every_kimg=0.056", "metrics.num_images=64", "metrics.extractor=classifier"),
]


def _result(run_dir: Path) -> dict[str, object]:
    """Every file of the last checkpoint, and every logged line but its speed."""
    checkpoint = max((run_dir / "checkpoints").iterdir())
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    lines = [
        {name: value for name, value in line.items() if name not in ("images_per_sec", "memory_gib")} for line in lines
    ]
    return {name: (checkpoint / name).read_bytes() for name in FILES} | {"metrics.jsonl": lines}


@pytest.mark.parametrize("recipe", RECIPES)
def test_runs_repeat_and_resume_with_the_same_bits(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, average, moments, logged figures and metrics, in the precision that the recipe names for a GPU."""
    config = load_recipe(recipe, *SETTINGS)
    config.train.precision = config.train.gpu_precision
    dist = Distributed(config.train.precision)
    assert dist.device.type == "cuda"
    with numerics(config.train.precision, exact=True):
        for run in ("whole", "again"):
            monkeypatch.setenv("GAN_DIST_CACHE", str(tmp_path / f"cache of {run}"))  # each trains its own classifier
            go_on(tmp_path / run, config, dist, stop=False)
        for part in range(STOPS + 1):
            go_on(tmp_path / "parts", config, dist, stop=part < STOPS)
    whole, again, parts = (_result(tmp_path / run) for run in ("whole", "again", "parts"))
    assert [name for name in whole if again[name] != whole[name]] == []
    assert [name for name in whole if parts[name] != whole[name]] == []
