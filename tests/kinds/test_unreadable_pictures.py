"""Pictures that cannot be read: which others stand in for them, who is told, and when the data are still the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from program import TREE, Program, Result

ROOT = Path(__file__).parent.parent.parent
SETTINGS = ["data.name=folder", "data.root=images", "data.image_size=8", "data.channels=1", "data.class_folders=true"]
FILES, MEMORY = "data.memory_gib=1e-9", "data.memory_gib=4"


def picture(path: Path, gray: int, size: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (size, size), gray).save(path)


@pytest.fixture
def broken(program: Program) -> Program:
    """A copy that broke off: two classes of 80 pictures, 30 of the second without content."""
    for i in range(160):
        picture(program.cwd / f"images/{'ab'[i // 80]}/{i:03d}.png", i)
    for i in range(130, 160):
        (program.cwd / f"images/b/{i:03d}.png").write_bytes(b"")
    return program


def train(program: Program, run: str, *settings: str) -> Result:
    result = program.train(*SETTINGS, "data.workers=0", f"run.dir={run}", *settings)
    assert result.returncode == 0, result.stderr
    return result


@pytest.mark.clause("1.6", "another stand-in file by file than in memory")
@pytest.mark.clause("1.6", "one kimg writes 53,307 warnings")
@pytest.mark.clause("1.6", "unreadable files are not listed with the run")
def test_same_training_from_files_and_memory_with_each_broken_file_named_once(broken: Program) -> None:
    weights = []
    for run, memory in (("files", FILES), ("memory", MEMORY)):
        train(broken, run, memory, "train.kimg=0.512", "sample.every_kimg=0", "checkpoint.every_kimg=0.512")
        log = (broken.cwd / run / "log.txt").read_text()
        assert sum("WARNING" in line for line in log.splitlines()) < 5
        assert log.count("images/b/130.png") == 1
        names = (broken.cwd / run / "unreadable.txt").read_text().splitlines()
        assert names == [f"b/{i:03d}.png" for i in range(130, 160)]
        weights.append((broken.cwd / run / "checkpoints/000000000512/G.safetensors").read_bytes())
    assert weights[0] == weights[1]


@pytest.mark.slow
@pytest.mark.clause("1.6", "workers warn for themselves, and are not heard by the main process")
def test_workers_report_to_the_main_process(broken: Program) -> None:
    result = broken.process(
        *("train", *SETTINGS, FILES, "run.dir=run", "train.kimg=0.32", "train.batch_size=32", "data.workers=2"),
        *("metrics.every_kimg=0", "sample.every_kimg=0", "log.every_kimg=0.1", "model.g_widths=[8]"),
        *("model.d_widths=[8]", "tracking.wandb=disabled", "train.device=cpu"),
    )
    assert result.returncode == 0, result.stderr
    assert "images/b/1" not in result.stderr
    assert (broken.cwd / "run/unreadable.txt").read_text().splitlines() == [f"b/{i:03d}.png" for i in range(130, 160)]


# An extractor that needs no training: the classifier would be trained on 128,000 decoded files.
MEASURE = """
import sys
from gan_dist.cli import main
from gan_dist.metrics import extractors

class Pixels:
    name, num_features, num_logits, identity, weights, resizing = "classifier", 64, 1, "pixels", "none", "none"
    def __call__(self, images):
        features = images.float().flatten(1)
        return features, features.new_zeros(len(images), 1)

if hasattr(extractors, "EXTRACTORS"):
    extractors.EXTRACTORS.own["classifier"] = lambda *_, **__: Pixels()
else:
    extractors.make_extractor = lambda *_, **__: Pixels()
"""

# Counts how often each file is decoded, and in which threads.
COUNT = """
import collections, sys, threading
from gan_dist.cli import main
from gan_dist.data import folder

read, files, threads = folder.read_image, collections.Counter(), set()

def counted(path, shape):
    image = read(path, shape)
    files[str(path)] += 1
    threads.add(threading.current_thread().name)
    return image

folder.read_image = counted
"""
RUN = """
status = main(sys.argv[1:])
print("decoded", max(files.values()), len(files), "main thread" if "MainThread" in threads else "other threads")
sys.exit(status)
"""


def counted(program: Program, code: str, *arguments: str) -> list[str]:
    """Run a command with counted decoding; returns the most of one file, the number of files, and the threads."""
    env = {**os.environ, "PYTHONPATH": TREE or str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code + COUNT + RUN, *arguments]
    result = subprocess.run(command, cwd=program.cwd, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()[-1].split(maxsplit=3)[1:]


@pytest.mark.slow
@pytest.mark.clause("1.6", "one good file after thirty unreadable ones is drawn thirty times in each epoch")
def test_no_picture_is_drawn_much_more_often_than_others(broken: Program) -> None:
    """1,600 images are ten epochs: each of the 130 good files is drawn about 12 times."""
    most, files, _ = counted(
        *(broken, "", "train", *SETTINGS, FILES, "data.workers=0", "run.dir=run", "train.kimg=1.6"),
        *("train.batch_size=32", "metrics.every_kimg=0", "sample.every_kimg=0", "log.every_kimg=1", "loss.r1_gamma=0"),
        *("model.g_widths=[8]", "model.d_widths=[8]", "tracking.wandb=disabled", "train.device=cpu"),
    )
    assert files == "130"
    assert int(most) < 30


@pytest.mark.slow
@pytest.mark.clause("1.6", "the reference of FID counts stand-ins, so one picture may be half of it")
@pytest.mark.clause("4.4", "reference features of a file data set are decoded by one thread")
def test_references_use_good_files_once_and_are_decoded_by_several_threads(broken: Program) -> None:
    train(broken, "run", FILES, "train.kimg=0.032", "sample.every_kimg=0")
    _, files, threads = counted(broken, MEASURE, "evaluate", "run", "--n", "32")
    (line,) = (broken.cwd / "run/evaluations.jsonl").read_text().splitlines()
    assert json.loads(line)["protocol"]["num_real"] == int(files) == 130
    assert threads == "other threads"


@pytest.mark.clause("1.6", "a set that was mended, or is read in the other way, is refused")
@pytest.mark.parametrize(("first", "second"), [(FILES, MEMORY), (MEMORY, FILES)], ids=["to memory", "to files"])
def test_mended_set_goes_on_in_the_other_way(first: str, second: str, broken: Program) -> None:
    train(broken, "run", first, "train.kimg=0.512", "sample.every_kimg=0")
    for i in range(130, 150):
        picture(broken.cwd / f"images/b/{i:03d}.png", i)
    result = broken("train", "run.dir=run", "resume=latest", "train.kimg=0.576", second)
    assert result.returncode == 0, result.stderr
    log = (broken.cwd / "run/log.txt").read_text()
    assert "20 images that could not be read before can be read now" in log
    assert f"now {'kept in memory' if second == MEMORY else 'read file by file'}" in log


@pytest.mark.clause("1.6", "935 of 1,000 pictures are replaced unnoticed")
@pytest.mark.parametrize("memory", [FILES, MEMORY], ids=["files", "memory"])
def test_one_other_picture_is_noticed(memory: str, program: Program) -> None:
    """In memory every pixel counts, and file by file every size."""
    noise = np.random.default_rng(0)
    for i in range(200):
        path = program.cwd / f"images/{i % 2}/{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
    train(program, "run", memory, "train.kimg=0.032", "sample.every_kimg=0")
    path = sorted((program.cwd / "images").rglob("*.png"))[151]  # none of 64 evenly spaced ones
    Image.new("L", (8, 8)).save(path)
    result = program("train", "run.dir=run", "resume=latest", "train.kimg=0.064")
    assert result.returncode == 2, result.stdout
    assert "belongs to another run: the data set's content differs" in result.stderr


@pytest.mark.clause("1.6", "an unreadable file's name ends the run, or is not shown")
def test_names_are_kept_apart_in_the_list(program: Program) -> None:
    for i in range(70):
        picture(program.cwd / f"images/a/{i}.png", i)
    picture(program.cwd / "images/a/größe.png", 9)
    (program.cwd / "images/a/broken\n.png").write_bytes(b"")
    train(program, "run", FILES, "train.kimg=0.32", "sample.every_kimg=0", "model.conditional=false")
    assert (program.cwd / "run/unreadable.txt").read_text() == "a/broken\\n.png\n"


@pytest.mark.clause("1.5", "a class whose only picture is broken is accepted in silence")
def test_class_without_a_readable_picture_is_said(broken: Program) -> None:
    (broken.cwd / "images/c").mkdir()
    (broken.cwd / "images/c/x.png").write_bytes(b"no picture")
    result = broken("prefetch", *SETTINGS, "metrics.every_kimg=0")
    assert "no image of the class c can be read" in result.stdout + result.stderr
