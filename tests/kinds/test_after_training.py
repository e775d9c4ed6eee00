"""What comes after the training changes nothing about its result, and what is said then is true."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, read_until
from PIL import Image
from program import Program

RING = ["data.name=ring", "model.name=mlp", "model.g_args={tanh: false}", "model.conditional=false"]
ODD_LINES = [
    '{"kimg": 0.01, "loss_D": "high"}',
    '{"kimg": 0.02, "loss_D": 1' + "0" * 400 + "}",
    '{"kimg": 0.03, "loss_G": [1, 2], "fid_x": {"a": 1}, "protocol": 7}',
    '{"kimg": 0.04, "loss_G": NaN, "fid_$x^{": 3, "protocol": {}}',
    '{"kimg": true, "loss_D": true}',
    '{"kimg": 1' + "0" * 400 + "}",
    '{"kimg": NaN}',
    '"kimg"',
    "[" * 5000,
    '{"kimg": 0.05',
]
# `report` exists since the files of the package are in folders.
A_TRACKER_FAILS = """
try:
    from gan_dist.report import tracking
except ImportError:
    from gan_dist import tracking
def fail(*_):
    raise ValueError("the tracker has its own opinion")
tracking.LocalTracker.finish = fail
"""
A_WORKER_FAILS = """
import signal
from gan_dist.data import folder
from torch.utils.data import get_worker_info
name = "fetch" if hasattr(folder.ImageFiles, "fetch") else "__getitems__"
read = getattr(folder.ImageFiles, name)
def fail(*arguments):
    if get_worker_info():
        raise RuntimeError("the decoder is confused")
    return read(*arguments)
setattr(folder.ImageFiles, name, fail)
"""


@pytest.fixture(scope="module")
def finished(shared_program: Program) -> Path:
    """A finished run with pictures and checkpoints at 0.128, 0.224 and 0.32 kimg."""
    settings = ["train.kimg=0.3", "sample.every_kimg=0.1", "checkpoint.every_kimg=0.1", "checkpoint.keep=0"]
    assert shared_program.train(*settings, "run.dir=run").returncode == 0
    return shared_program.cwd / "run"


@pytest.fixture
def run(finished: Path, program: Program) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(finished, program.cwd / "run"))


@pytest.mark.clause("3.2", "plot_run on odd lines of metrics.jsonl ends a finished run with status 1")
def test_odd_lines_of_metrics(program: Program, run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(line + "\n" for line in ODD_LINES)
    result = program("train", "run.dir=run", "resume=latest", "train.kimg=0.35")
    assert result.returncode == 0, result.stderr
    assert (run / "checkpoints/000000000352").is_dir()
    assert (run / "plot.png").stat().st_mtime_ns > (run / "config.yaml").stat().st_mtime_ns, "it was drawn"


@pytest.mark.slow
@pytest.mark.clause("3.2", "a tracker's error at its end makes a finished run a failed one")
def test_tracker_that_fails_at_the_end(program: Program) -> None:
    result = program.process("train", *TINY, "train.kimg=0.1", "run.dir=run", first=A_TRACKER_FAILS)
    assert result.returncode == 0, result.stderr
    assert "the tracker has its own opinion" in result.stdout
    assert "finished: 0.1" in result.stdout


@pytest.mark.clause("3.2", "a run of points is told to use gan-dist sample, which refuses points")
def test_points_have_no_samples(program: Program) -> None:
    result = program.train(*RING, "train.kimg=0.1", "run.dir=run")
    assert result.returncode == 0, result.stderr
    assert "checkpoint  run/checkpoints/000000000128" in result.stdout
    assert "gan-dist sample" not in result.stdout


@pytest.mark.slow
@pytest.mark.clause("3.2", "the command to go on with is wrong for a directory with spaces")
def test_command_to_go_on_with_can_be_pasted(program: Program) -> None:
    process = program.start("train", *TINY, "train.kimg=100000", "run.dir=my run")
    read_until(process, "1.0/100000 kimg")
    process.send_signal(signal.SIGTERM)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 75, error
    assert "train 'run.dir=my run' resume=latest" in out
    assert "gan-dist sample 'my run' --n 64 --grid" in out


@pytest.mark.clause("3.2", "after going back, pictures of the course that was left are named")
def test_newer_pictures_are_not_those_of_the_run(program: Program, run: Path) -> None:
    result = program("train", "run.dir=run", "resume=run/checkpoints/000000000128", "train.kimg=0.2")
    assert result.returncode == 0, result.stderr
    assert "samples     run/samples/grid-000000.224.png" in result.stdout
    assert "checkpoint  run/checkpoints/000000000224" in result.stdout
    assert "finished: 0.2 kimg in" not in result.stdout, "0.1 of them were trained before"


@pytest.mark.clause("3.2", "with nothing trained it says that the whole run took a second")
def test_nothing_is_left_to_train(program: Program, run: Path) -> None:
    result = program("train", "run.dir=run", "resume=latest")
    assert result.returncode == 0, result.stderr
    assert not re.search(r"^finished:", result.stdout, re.MULTILINE)
    assert "0.3 kimg" in result.stdout or "nothing" in result.stdout


@pytest.mark.clause("3.2", "before the first checkpoint it wants to go back to one that isn't there")
@pytest.mark.parametrize("policy", ["rollback", "stop"])
def test_no_checkpoint_to_go_back_to(policy: str, program: Program) -> None:
    result = program.train("run.dir=run", "optim.D.lr=1e30", "train.kimg=1.9", f"train.on_nonfinite={policy}")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "gradients are not finite" in result.stderr
    assert "no checkpoint was written before" in result.stderr


@pytest.fixture
def lose_a_worker(program: Program) -> Callable[..., str]:
    """Train with data workers, of which one gets a signal or fails by itself; returns what is said on stderr."""
    (program.cwd / "images").mkdir()
    for i in range(64):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(program.cwd / f"images/{i:02d}.png")
    data = ["data.name=folder", "data.root=images", "data.image_size=8", "data.memory_gib=1e-9", "data.workers=1"]
    data += ["model.conditional=false", "train.kimg=100000", "log.every_kimg=0.1", "run.dir=run"]

    def lose(number: int | None, first: str = "") -> str:
        process = program.start("train", *TINY, *data, first=first)
        if number:
            read_until(process, "kimg  D ")
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            workers = [pid for pid in children if "resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_text()]
            os.kill(int(workers[0]), number)
        _, error = process.communicate(timeout=60)
        assert process.returncode == 1
        return error

    return lose


@pytest.mark.slow
@pytest.mark.clause("3.2", "a loader's error is always 'lower data.workers'")
@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (signal.SIGKILL, "memory ran out: lower data.workers"),
        (signal.SIGBUS, "/dev/shm is full"),
        (signal.SIGSEGV, "a library has crashed in it"),
        (None, "RuntimeError: the decoder is confused"),
    ],
)
def test_advice_fits_what_a_worker_died_of(number: int | None, advice: str, lose_a_worker: Callable[..., str]) -> None:
    error = lose_a_worker(number, "" if number else A_WORKER_FAILS)
    assert advice in error
    assert ("lower data.workers" in error) == (number in (signal.SIGKILL, signal.SIGBUS))


@pytest.mark.slow
@pytest.mark.clause("3.2", "the reason is unknown if a worker dies in its first batch")
def test_worker_that_dies_at_once(lose_a_worker: Callable[..., str]) -> None:
    dies = A_WORKER_FAILS.replace('raise RuntimeError("the decoder is confused")', "signal.raise_signal(signal.SIGBUS)")
    assert "/dev/shm is full" in lose_a_worker(None, dies)
