"""Tests that a run that was stopped and resumed ends bit-identical to a run without a stop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import DISTINCT, ROOT, SMALL, Train, start_ranks
from resume_worker import CHANGED, CHANGED_IN_TWO, IN_TWO

from gan_dist.checkpoint.find import FILES


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_every_combination_resumes_exactly(world_size: int, tmp_path: Path) -> None:
    """Recipes, losses, precisions and data workers, stopped by SIGTERM at two places: every file is the same."""
    processes = start_ranks(world_size, [str(ROOT / "tests/resume_worker.py"), str(tmp_path)], tmp_path)
    for process in processes:
        _, error = process.communicate(timeout=1800)
        assert process.returncode == 0, error
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results) == len([*DISTINCT, *CHANGED] if world_size == 1 else [*IN_TWO, *CHANGED_IN_TWO])
    assert {name: files for name, files in results.items() if files} == {}


@pytest.mark.slow
def test_plain_program_resumes_a_growing_network_in_mixed_precision(train: Train, tmp_path: Path) -> None:
    """Without a launcher nothing wraps the networks, which are prepared anew in each stage."""
    settings = [
        *(str(ROOT / "configs/pggan_fashion_mnist.yaml"), *SMALL["pggan"], "data.name=digits", "data.image_size=16"),
        *("growth.stable_kimg=0.256", "growth.fade_kimg=0.256", "train.precision=bf16", "train.batch_size=32"),
        *("sample.every_kimg=0", "metrics.every_kimg=0", "train.device=cpu", "tracking.wandb=disabled"),
    ]
    assert train(*settings, "run.dir=whole", "train.kimg=1.28", tiny=False).returncode == 0
    assert train(*settings, "run.dir=parts", "train.kimg=0.64", tiny=False).returncode == 0, (
        "the middle of three stages"
    )
    assert train("run.dir=parts", "resume=latest", "train.kimg=1.28", tiny=False).returncode == 0
    whole, parts = (tmp_path / f"{name}/checkpoints/000000001280" for name in ("whole", "parts"))
    assert [name for name in FILES if (whole / name).read_bytes() != (parts / name).read_bytes()] == []


@pytest.mark.slow
def test_layers_large_enough_for_faster_kernels_resume_exactly(train: Train, tmp_path: Path) -> None:
    """`gan_dist.kernels.cpu` takes linear layers from 2^16 weights on, which the small networks above do not have."""
    settings = ["model.g_widths=[256,256]", "model.d_widths=[256,256]", "sample.every_kimg=0"]
    assert train(*settings, "run.dir=whole", "train.kimg=1.024").returncode == 0
    assert train(*settings, "run.dir=parts", "train.kimg=0.512").returncode == 0
    assert train("run.dir=parts", "resume=latest", "train.kimg=1.024", tiny=False).returncode == 0
    whole, parts = (tmp_path / f"{name}/checkpoints/000000001024" for name in ("whole", "parts"))
    assert [name for name in FILES if (whole / name).read_bytes() != (parts / name).read_bytes()] == []
