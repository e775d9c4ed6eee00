"""Networks through torch.compile: the same training, the same files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from conftest import Train, load_recipe
from torch import Tensor

from gan_dist.checkpoint.write import take_snapshot, write_checkpoint
from gan_dist.data.datasets import describe
from gan_dist.parallel.distributed import Distributed
from gan_dist.settings.config import as_yaml
from gan_dist.wiring.build import WiredRun, build
from gan_dist.wiring.data import source_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (torch.cuda.is_available() or shutil.which("g++") or shutil.which("clang++")),
        reason="needs a C++ compiler: g++",
    ),
]
QUIET = [f"{section}.every_kimg=0" for section in ("log", "sample", "metrics", "checkpoint")]
# Every other D step has a penalty, and with it networks that are not compiled.
SETTINGS = [*QUIET, "tracking.wandb=disabled", "train.batch_size=8", "loss.penalty_interval=2", "train.precision=fp64"]


def _start(folder: Path, compiled: bool, checkpoint: Path | None = None) -> WiredRun:
    config = load_recipe("digits", *SETTINGS, f"train.compile={str(compiled).lower()}")
    dist = Distributed("fp64", cpu=True)
    folder.mkdir(exist_ok=True)
    return build(config, describe(source_of(config.data)), folder, checkpoint, dist)


def _go_on(run: WiredRun, iterations: int) -> dict[str, Tensor]:
    for _ in range(iterations):
        run.trainer.step(run.trainer.batches)
    run.trainer.batches.close()
    return {f"{n}.{k}": v.clone() for n in ("G", "D") for k, v in getattr(run.state, n).state_dict().items()}


def test_compiled_networks_train_as_others_do_and_resume_exactly(tmp_path: Path) -> None:
    eager = _go_on(_start(tmp_path / "eager", compiled=False), 6)
    compiled = _go_on(_start(tmp_path / "compiled", compiled=True), 6)
    assert compiled.keys() == eager.keys(), "no prefix in the names of weights"
    for name, tensor in eager.items():
        torch.testing.assert_close(compiled[name], tensor, rtol=1e-9, atol=1e-12)

    stopped = _start(tmp_path / "stopped", compiled=True)
    _go_on(stopped, 3)
    checkpoint = write_checkpoint(
        tmp_path / "stopped", take_snapshot(stopped.state, stopped.save.facts), as_yaml(load_recipe("digits"))
    )
    resumed = _go_on(_start(tmp_path / "stopped", compiled=True, checkpoint=checkpoint), 3)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in compiled.items())


def test_without_a_compiler_there_is_one_line(train_process: Train, tmp_path: Path) -> None:
    caches = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}
    result = train_process("train.compile=true", env={"PATH": "/nowhere", "CXX": "/nowhere/c++", **caches})
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1, result.stderr
    assert "train.compile=true" in result.stderr
    assert "C++ compiler" in result.stderr
