"""Files that mix: of two checkpoints in one folder, of two runs in one W&B run, of one run in two directories."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import _in_order
from PIL import Image
from program import Program

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(shared_program: Program) -> Path:
    """A run with two checkpoints."""
    assert shared_program.train("run.dir=run", "train.kimg=1", "checkpoint.every_kimg=0.5").returncode == 0
    return shared_program.cwd / "run"


@pytest.fixture
def copied(program: Program, trained: Path) -> Program:
    """The command line beside a copy of that run."""
    shutil.copytree(trained, program.cwd / "run")
    return program


def _pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: np.asarray(Image.open(path)).tobytes() for path in sorted(folder.iterdir())}


def _sample(program: Program, *arguments: str) -> Path:
    """Generate two images, and return the folder in which they are."""
    result = program("sample", "run", "--n", "2", *arguments)
    assert result.returncode == 0, result.stderr
    folder = program.cwd / result.stdout.splitlines()[-1].partition(" in ")[2]
    assert len(list(folder.glob("*.png"))) == 2, "images of this command only"
    return folder


@pytest.mark.clause("1.9", "old images of another checkpoint, seed or classes stay in the folder of samples")
def test_each_checkpoint_seed_and_choice_of_classes_has_a_folder(copied: Program) -> None:
    assert copied("sample", "run", "--n", "5").returncode == 0
    older = next(path.name for path in sorted((copied.cwd / "run/checkpoints").iterdir()))
    choices = [[], ["--seed", "1"], ["--classes", "3,7"], ["--classes", "7,3"], ["--checkpoint", older]]
    folders = [_sample(copied, *choice) for choice in choices]
    assert len(set(folders)) == len(choices)
    assert len({_pictures(folder)["000000.png"] for folder in folders}) >= 4
    assert _sample(copied) == folders[0], "the same words again"
    assert not [path for path in folders[0].parent.iterdir() if path.name.startswith(".")], "nothing is left aside"


@pytest.mark.clause("1.9", "a folder given by --out that holds other files is mixed with them")
@pytest.mark.parametrize("other", ["seed", "classes", "notes", "picture", "nothing", "file"])
def test_out_with_other_files_is_refused(other: str, copied: Program) -> None:
    out = copied.cwd / "out"
    words = ["sample", "run", "--out", "out", "--n", "2"]
    first = {"seed": ["--seed", "1"], "classes": ["--classes", "3"], "nothing": []}
    if other in first:
        assert copied(*words, *first[other]).returncode == 0
    elif other == "file":
        out.write_text("mine\n")
    else:
        out.mkdir()
        (out / "notes.txt").write_text("mine\n") if other == "notes" else Image.new("L", (8, 8)).save(
            out / "000000.png"
        )
    before = {path: path.read_bytes() for path in (*out.rglob("*"), out) if path.is_file()}
    result = copied(*words)
    if other == "nothing":
        assert result.returncode == 0, "the same words again are allowed"
        return
    assert result.returncode == 2, result.stdout
    assert "out" in result.stderr
    assert result.stderr.count("\n") == 1
    assert {path: path.read_bytes() for path in (*out.rglob("*"), out) if path.is_file()} == before


@pytest.mark.clause("1.9", "a command that is killed leaves old and new images in one folder")
def test_folder_is_replaced_as_a_whole(copied: Program) -> None:
    before = _pictures(_sample(copied, "--out", "out"))
    process = copied.start("sample", "run", "--out", "out", "--n", "1000000")
    while len(list(copied.cwd.glob("*/*.png"))) < 20:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert _pictures(copied.cwd / "out") == before


OFFLINE = ["tracking.wandb=offline", "train.kimg=0.1", "sample.every_kimg=0", "resume=auto"]


def _id(run: Path) -> str:
    return (run / "wandb_id.txt").read_text().split()[0]


@pytest.mark.clause("1.9", "two copies of a run directory share one W&B id")
def test_copy_of_a_run_gets_a_wandb_run_of_its_own(program: Program) -> None:
    assert program.train("run.dir=run", *OFFLINE).returncode == 0
    first = _id(program.cwd / "run")
    shutil.copytree(program.cwd / "run", program.cwd / "copy")
    result = program.train("run.dir=copy", *OFFLINE, "train.kimg=0.2")
    assert result.returncode == 0, result.stderr
    assert _id(program.cwd / "copy") != first
    assert (program.cwd / "copy/log.txt").read_text().count("is a copy of another run directory") == 1
    (program.cwd / "run").rename(program.cwd / "moved")
    assert program.train("run.dir=moved", *OFFLINE, "train.kimg=0.2").returncode == 0
    assert _id(program.cwd / "moved") == first, "a moved directory keeps its id"


@pytest.mark.clause("1.9", "a directory that is moved while the run writes is written in both places")
@pytest.mark.parametrize("replaced", [False, True])
def test_run_stops_when_its_directory_is_moved(replaced: bool, program: Program) -> None:
    """Also if another directory has taken its name."""
    run, moved = program.cwd / "run", program.cwd / "moved"
    settings = ["run.dir=run", "train.kimg=100000", "log.every_kimg=0.064", "checkpoint.every_kimg=0.064"]
    process = program.start("train", *_in_order([*settings, "sample.every_kimg=0"]))
    while not list(run.glob("checkpoints/0*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    run.rename(moved)
    if replaced:
        run.mkdir()
    out, error = process.communicate(timeout=60)
    assert process.returncode == 1, out + error
    assert "run.dir=run was moved or replaced" in error
    assert not run.exists() or not list(run.iterdir()), "nothing is written in the old place"
    lines = [json.loads(line) for line in (moved / "metrics.jsonl").read_text().splitlines()]
    assert lines
    result = program.train("run.dir=moved", "resume=latest", f"train.kimg={lines[-1]['kimg'] + 0.1}")
    assert result.returncode == 0, result.stderr
