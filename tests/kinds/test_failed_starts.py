"""Starts that fail before training leave nothing behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from program import Program

pytestmark = pytest.mark.slow

FAILURES = {
    "missing Inception file": ["metrics.every_kimg=1", "metrics.extractor=inception",
                               "metrics.inception_weights=no.pth"],
    "missing data": ["data.name=folder", "data.root=nothing", "model.conditional=false"],
    "batch larger than the data": ["train.batch_size=4096"],
    "impossible argument": ["model.g_args={nothing: 1}"],
    "points for a model of images": ["data.name=ring", "model.conditional=false"],
    "broken image": ["data.name=folder", "data.root=pictures", "data.image_size=8", "model.conditional=false",
                     "train.batch_size=4", "data.broken_files=error"],
}  # fmt: skip


@pytest.mark.clause("3.5", "a missing Inception file leaves a phantom W&B run; failed starts leave directories")
@pytest.mark.parametrize("failure", FAILURES)
def test_failed_start_leaves_no_directory(failure: str, program: Program) -> None:
    if failure == "broken image":
        _pictures(program.cwd / "pictures")
    before = _listing(program.cwd)
    result = program.train("run.dir=a/b/run", "train.kimg=0.1", "tracking.wandb=offline", *FAILURES[failure])
    assert result.returncode in (1, 2)
    assert result.stderr.count("\n") == 1
    assert _listing(program.cwd) == before


@pytest.mark.clause("3.5", "a failed start removes nothing that was there before")
@pytest.mark.parametrize("place", ["run.dir=runs/mine", "run.name=mine"])
def test_what_was_there_before_stays(place: str, program: Program) -> None:
    (program.cwd / "runs/mine/samples").mkdir(parents=True)
    (program.cwd / "runs/mine/notes.txt").write_text("mine")
    before = _listing(program.cwd)
    result = program.train(place, "train.kimg=0.1", "tracking.wandb=offline", *FAILURES["missing Inception file"])
    assert result.returncode == 1
    assert "no usable weights" in result.stderr
    assert _listing(program.cwd) == before


def _listing(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def _pictures(folder: Path) -> None:
    folder.mkdir()
    for i in range(8):
        Image.fromarray(np.full((8, 8), 30 * i, dtype=np.uint8)).save(folder / f"{i}.png")
    (folder / "0.png").write_bytes(b"torn")
