"""What only a GPU can show."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import Train

from gan_dist.build import build
from gan_dist.config import load_config
from gan_dist.data import describe
from gan_dist.distributed import Distributed

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU and a CUDA build of torch")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gpu_trains_like_the_cpu(train: Train, tmp_path: Path, precision: str) -> None:
    assert train("run.dir=gpu", "train.device=auto", f"train.precision={precision}").returncode == 0
    assert train("run.dir=cpu").returncode == 0
    gpu, cpu = ((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0] for name in ("gpu", "cpu"))
    tolerance = 1e-3 if precision == "fp32" else 2e-2
    assert json.loads(gpu)["loss_D"] == pytest.approx(json.loads(cpu)["loss_D"], rel=tolerance)


def test_iteration_never_waits_for_the_gpu(tmp_path: Path) -> None:
    config = load_config(None, ["metrics.every_kimg=0", "tracking.wandb=disabled", "data.hflip=true"])
    run = build(config, describe(config.data), tmp_path, None, Distributed("fp32"))
    trainer = run.trainer
    trainer.step(trainer.batches)  # allocations and kernels of the first iteration
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            trainer.step(trainer.batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")
