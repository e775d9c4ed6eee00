"""FIFOs, devices, links and hard links in the place of files of a run and of the caches."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import run_here
from program import TREE, Program, Result
from safetensors.torch import load_file

TINY_RUN = ["train.kimg=0.2", "train.batch_size=32", "model.g_widths=[4]", "model.d_widths=[4]", "log.every_kimg=0.1"]
TINY_RUN += ["sample.every_kimg=0.1", "checkpoint.every_kimg=0.1", "metrics.every_kimg=0", "tracking.wandb=disabled"]
TINY_RUN += ["train.device=cpu", "data.workers=0"]
LONGER = ["run.dir=run", "resume=auto", "train.kimg=0.3"]
SECONDS = 120  # until a program counts as one that waits for ever, also in this process
pytestmark = [pytest.mark.slow, pytest.mark.timeout(SECONDS if TREE is None else 0)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished run; each test works on a copy."""
    folder = tmp_path_factory.mktemp("finished")
    assert run_here(folder, "train", *TINY_RUN, "run.dir=run").returncode == 0
    return folder / "run"


def _start(program: Program, *command: str, env: dict[str, str] | None = None) -> Result:
    """Run a command that may wait for ever on the tree in which the faults were found."""
    return program(*command, env=env) if TREE is None else program.process(*command, env=env, timeout=SECONDS)


@pytest.fixture
def run(finished: Path, program: Program) -> Path:
    return Path(shutil.copytree(finished, program.cwd / "run"))


def _socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the name of a socket has at most 108 characters
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def _device(path: Path) -> None:
    try:
        os.mknod(path, 0o20666, os.makedev(1, 5))  # /dev/zero
    except PermissionError:
        pytest.skip("needs root")


RUN_FILES = ["config.yaml", "log.txt", "metrics.jsonl", ".owner", "wandb_id.txt", "plot.png", "samples/real-*.png"]
KINDS: dict[str, Callable[[Path], None]] = {"FIFO": os.mkfifo, "device": _device, "socket": _socket}


@pytest.mark.clause("2.5", "a FIFO, a device or a socket in place of a file of a run hangs or reads without end")
@pytest.mark.clause("3.3", "files of a run directory that are of another type; tests/test_fuzz.py tries any of them")
@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, "FIFO") for name in RUN_FILES), ("metrics.jsonl", "device"), (".owner", "socket")],
)
def test_run_with_a_special_file_is_not_continued(name: str, kind: str, run: Path, program: Program) -> None:
    (path,) = run.glob(name) if "*" in name else [run / name]
    path.unlink(missing_ok=True)
    KINDS[kind](path)
    command = ["evaluate", "run"] if name == "config.yaml" else ["train", *TINY_RUN, *LONGER]
    result = _start(program, *command)
    assert result.returncode == 1, result.stdout + result.stderr
    (line,) = result.stderr.splitlines()
    assert f"error: {path.relative_to(program.cwd)} is a FIFO, a device or a socket" in line


@pytest.mark.clause("2.5", "a FIFO where the exit status is written")
def test_status_file_is_replaced(run: Path, program: Program) -> None:
    os.mkfifo(run / ".status")
    env = {"GAN_DIST_STATUS_FILE": str(run / ".status")}
    result = _start(program, "train", "train.kimg=-1", env=env)
    assert result.returncode == 2
    assert (run / ".status").read_text() == "2\n"


@pytest.mark.clause("2.5", "a FIFO or a device in place of weights or of a file in the cache")
@pytest.mark.parametrize(("where", "kind"), [("weights", "FIFO"), ("weights", "device"), ("cache", "FIFO")])
def test_weights_that_are_no_file_are_refused(where: str, kind: str, run: Path, program: Program) -> None:
    name = "weights-inception-2015-12-05-6726825d.pth"
    (program.cwd / "cache").mkdir()
    path = program.cwd / "cache" / name
    KINDS[kind](path)
    weights = [f"metrics.inception_weights={path}"] if where == "weights" else []
    command = ["evaluate", "run", "--n", "20", "metrics.extractor=inception", *weights]
    result = _start(program, *command, env={"GAN_DIST_CACHE": str(path.parent)})
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert f"no usable weights at {path}" in line
    assert "not a regular file" in line


@pytest.mark.clause("2.5", "a FIFO in place of a classifier in the cache")
def test_classifier_that_is_no_file_is_trained_anew(
    run: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gan_dist.metrics.classifier.STEPS", 100)  # enough for the digits
    cache = program.cwd / "cache"
    env = {"GAN_DIST_CACHE": str(cache)}
    command = ("evaluate", "run", "--n", "20")
    assert _start(program, *command, env=env).returncode == 0
    (classifier,) = cache.glob("classifier-*")
    before = load_file(classifier)
    classifier.unlink()
    os.mkfifo(classifier)
    (run / classifier.name).unlink(missing_ok=True)  # the run's own copy would be used instead
    result = _start(program, *command, env=env)
    assert result.returncode == 0, result.stderr
    assert classifier.is_file()
    after = load_file(classifier)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    first, second = (run / "evaluations.jsonl").read_text().splitlines()
    assert first == second


@pytest.mark.clause("2.5", "a hard-linked run file is changed in the backup too")
def test_backup_by_hard_links_stays_as_it_was(run: Path, program: Program) -> None:
    for name in ("evaluations.jsonl", ".starts"):
        (run / name).write_text("{}\n")
    backup = program.cwd / "backup"
    shutil.copytree(run, backup, copy_function=os.link)
    before = {path: path.read_bytes() for path in backup.rglob("*") if path.is_file()}
    result = program("train", *TINY_RUN, *LONGER)
    assert result.returncode == 0, result.stderr
    assert "0.3 kimg" in (run / "log.txt").read_text()
    assert {path: path.read_bytes() for path in backup.rglob("*") if path.is_file()} == before
    assert not list(run.rglob("*.tmp"))


@pytest.mark.clause("2.5", "files of a run without a limit of size")
def test_files_without_end_are_refused(run: Path, program: Program) -> None:
    for name in (".owner", "metrics.jsonl"):
        (run / name).write_bytes(b"")
        os.truncate(run / name, 2**42)
    result = _start(program, "train", *TINY_RUN, *LONGER)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert "error: run.dir=run: cannot write there (4398046511104 bytes are more than" in line
