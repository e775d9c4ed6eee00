"""Runs that an earlier version has written (`tests/old_runs/`) can be sampled, and training goes on from them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Train

import gan_dist

RUNS = {"digits": (1, 8, 8), "growing": (1, 16, 16)}


@pytest.mark.parametrize("name", RUNS)
def test_generator_of_an_old_run_makes_images(name: str) -> None:
    G = gan_dist.load_generator(ROOT / "tests/old_runs" / name)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(4, 8, generator=generator)
    images = G(z, torch.arange(4)) if G.num_classes else G(z)
    assert images.shape == (4, *RUNS[name])
    assert images.std() > 0


@pytest.mark.parametrize("name", RUNS)
def test_training_goes_on_from_an_old_run(name: str, train: Train, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "tests/old_runs" / name, tmp_path / name)
    run = train(f"run.dir={name}", "resume=latest", "train.kimg=0.112", tiny=False)
    assert run.returncode == 0, run.stderr
    lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
    assert [line["kimg"] for line in lines] == [0.016, 0.032, 0.048, 0.064, 0.08, 0.096, 0.112]
