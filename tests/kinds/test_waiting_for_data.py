"""Waiting for data: without room in /dev/shm, without a data folder, without workers, and at a stop signal."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import ROOT, TINY, make_images
from PIL import Image
from program import COMMAND, TREE, Program

pytestmark = pytest.mark.slow

FILES = ["data.name=folder", "data.root=images", "data.image_size=16", "data.memory_gib=1e-9", "data.workers=2"]
FILES += ["model.conditional=false", "train.batch_size=16", "sample.every_kimg=0", "log.every_kimg=0.1", "run.dir=run"]
LIMIT = 60.0  # seconds after which a test stops to wait for what does not come


def _until(true: Callable[[], object], seconds: float = LIMIT) -> bool:
    """Wait until a condition is true; returns False if it does not become true in time."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _log(program: Program) -> str:
    path = program.cwd / "run/log.txt"
    return path.read_text() if path.exists() else ""


def _trains(program: Program) -> bool:
    return "kimg  D " in _log(program)


def _checkpoints(program: Program) -> list[Path]:
    return sorted((program.cwd / "run/checkpoints").glob("[0-9]*"))


def _workers(of: int) -> list[int]:
    """The data workers below a process: processes with the command line of their parent."""
    found = []
    children = Path(f"/proc/{of}/task").glob("*/children")
    for child in {int(pid) for path in children for pid in path.read_text().split()}:
        if Path(f"/proc/{child}/cmdline").read_bytes() == Path(f"/proc/{of}/cmdline").read_bytes():
            found.append(child)
        found += _workers(child)
    return found


@contextmanager
def _beside(work: Callable[[], None]) -> Iterator[None]:
    """A context beside which a thread does something."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()


@pytest.fixture
def images(program: Program) -> Path:
    folder = program.cwd / "images"
    make_images(folder)
    return folder


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.clause("2.1", "with a small /dev/shm the feeder drops the batch, and training waits for ever")
def test_small_shared_memory_is_said_and_does_not_stop_training(program: Program, images: Path) -> None:
    gan_dist = [sys.executable, "-c", COMMAND, "train", *TINY, *FILES, "data.image_size=128", "train.kimg=0.2"]
    command = f'mount -t tmpfs -o size=2m tmpfs /dev/shm && exec timeout -k 5 {LIMIT:.0f} "$@"'
    env = {**os.environ, "PYTHONPATH": TREE or str(ROOT)}
    ended = subprocess.run(
        ["unshare", "-m", "sh", "-c", command, "sh", *gan_dist],
        cwd=program.cwd,
        env=env,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    for output in (ended.stdout, _log(program)):
        said = [line for line in output.splitlines() if "/dev/shm" in line]
        assert len(said) == 1
        assert "prefetches 1 batch instead of 2" in said[0]
        assert "--shm-size" in said[0]
        assert "data.workers" in said[0]


@pytest.mark.clause("2.1", "a wait for data is never said")
def test_long_wait_is_said(program: Program, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers are stopped, as by a storage that does not answer, and go on when the wait was said."""
    monkeypatch.setattr("gan_dist.data.waiting.LOOK", 0.02)  # a minute is a second then

    def hold() -> None:
        _until(lambda: _trains(program))
        held = _workers(os.getpid())
        for pid in held:
            os.kill(pid, signal.SIGSTOP)
        _until(lambda: "waiting for a batch" in _log(program), 10)
        for pid in held:
            os.kill(pid, signal.SIGCONT)

    for path in images.rglob("*.png"):  # large ones, so that the workers are stopped while they read
        Image.open(path).resize((512, 512)).save(path)
    with _beside(hold):
        ended = program.train(*FILES, "train.kimg=0.5")
    assert ended.returncode == 0, ended.stderr
    assert "waiting for a batch of images" in ended.stdout
    assert "waiting for a batch of images for 1 min; 2 data workers have" in _log(program)


@pytest.mark.clause("2.1", "a SIGTERM during a wait for data is ignored, and no checkpoint is written")
def test_signal_during_a_wait_saves(program: Program, images: Path) -> None:
    process = program.start("train", *TINY, *FILES, "train.kimg=1000", "checkpoint.every_kimg=0")
    assert _until(lambda: _trains(program))
    for pid in _workers(process.pid):
        os.kill(pid, signal.SIGSTOP)
    process.send_signal(signal.SIGTERM)
    try:
        process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        pytest.fail("it still waits")
    finally:
        for pid in _workers(process.pid):
            os.kill(pid, signal.SIGKILL)
    assert process.returncode == 75
    assert len(_checkpoints(program)) == 1


@pytest.mark.clause(
    "2.1", "a data folder that is gone for a moment is replaced by nothing but warnings, or ends the run"
)
def test_folder_that_comes_back(program: Program, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said once, no picture is replaced by another, and the result is the same as without the gap."""
    monkeypatch.setattr("gan_dist.data.waiting.LOOK", 0.05)
    away = program.cwd / "away"

    def move() -> None:
        _until(lambda: _trains(program))
        images.rename(away)
        _until(lambda: "are gone" in _log(program), 10)
        away.rename(images)

    with _beside(move):
        ended = program.train(*FILES, "train.kimg=8")
    assert ended.returncode == 0, ended.stderr
    assert _log(program).count("the images are gone") == 1
    assert "in its place" not in ended.stdout
    last = _checkpoints(program)[-1]
    shutil.move(last, program.cwd / "last")
    shutil.rmtree(program.cwd / "run")
    assert program.train(*FILES, "train.kimg=8").returncode == 0
    for name in ("G.safetensors", "D.safetensors"):
        assert (program.cwd / "last" / name).read_bytes() == (last / name).read_bytes()


@pytest.mark.clause("2.1", "a data folder that is gone gives thousands of warnings, and no checkpoint at the end")
def test_folder_that_stays_away(program: Program, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gan_dist.data.waiting.LOOK", 0.005)

    def remove() -> None:
        _until(lambda: _trains(program))
        images.rename(program.cwd / "away")

    with _beside(remove):
        ended = program.train(*FILES, "train.kimg=1000", "checkpoint.every_kimg=0")
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert "the images are gone" in ended.stderr
    assert len(_checkpoints(program)) == 1
    assert _log(program).count("gone") == 1


@pytest.mark.clause("2.1", "a run whose data workers die loses the work since its last checkpoint")
def test_dead_worker_costs_nothing(program: Program, images: Path) -> None:
    """Of two processes the second one loses a worker; both end before the same iteration, and the first one saves."""
    settings = [*TINY, *FILES, "train.kimg=1000", "checkpoint.every_kimg=0", "data.workers=1"]
    processes = program.ranks(["train", *settings], ["train", *settings])
    assert _until(lambda: _trains(program))
    os.kill(_workers(processes[1].pid)[0], signal.SIGKILL)
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    assert all("a data worker has died" in error for error in errors)
    assert len(_checkpoints(program)) == 1


@pytest.mark.clause("2.1", "a signal during an evaluation takes effect when the evaluation ends")
def test_signal_breaks_an_evaluation_off(program: Program) -> None:
    """It is broken off, the checkpoint is there, and what was not measured is measured when the run goes on."""
    settings = [*TINY, "sample.every_kimg=0", "checkpoint.every_kimg=1000", "train.kimg=6", "run.dir=run"]
    assert program.train(*settings, "train.kimg=1").returncode == 0
    long = ["metrics.every_kimg=2", "metrics.num_images=150000", "metrics.batch_size=100"]
    process = program.start("train", *settings, *long, "resume=latest")
    assert _until(lambda: "2.0/6 kimg" in _log(program) or process.poll() is not None)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 75
    assert "fid_classifier" not in _log(program)
    (saved,) = [path for path in _checkpoints(program) if path.name > "000000001100"]
    assert saved.name == "000000002016"
    short = ["metrics.every_kimg=2", "metrics.num_images=100"]
    assert program.train(*settings, *short, "train.kimg=3", "resume=latest").returncode == 0
    measured = [line for line in _log(program).splitlines() if "kimg  fid_classifier" in line]
    assert [line.split()[3] for line in measured] == ["2.0", "3.0"]
