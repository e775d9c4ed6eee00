"""Ranks after their launcher is killed, and SIGHUP, which a terminal sends when it is closed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, TINY, read_until
from program import COMMAND, TREE, Program

HERE = str(TREE or ROOT)
RUN = [*TINY, "train.kimg=100000", "run.dir=run"]
END = 60.0
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
SIMPLE = ["accelerate.commands.launch", "--config_file", f"{HERE}/launch/one_gpu.yaml"]


def _status_of(run_dir: Path) -> int:
    """Wait until the main process has written its exit status, and return it."""
    deadline = time.monotonic() + END
    while not (run_dir / ".status").exists() or not (run_dir / ".status").read_text():
        assert time.monotonic() < deadline, "the ranks train on"
        time.sleep(0.1)
    return int((run_dir / ".status").read_text())


def _processes_in(folder: Path) -> list[int]:
    """The processes that work in a directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if (path / "cwd").resolve() == folder.resolve():
                found.append(int(path.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "number"),
    [
        pytest.param(
            TORCHRUN,
            signal.SIGKILL,
            marks=pytest.mark.clause("2.3", "torchrun is killed, and its ranks train on and hold the lock"),
            id="torchrun-killed",
        ),
        pytest.param(
            SIMPLE,
            signal.SIGKILL,
            marks=pytest.mark.clause("2.3", "accelerate launch is killed, and its process trains on"),
            id="accelerate-killed",
        ),
        pytest.param(
            TORCHRUN,
            signal.SIGHUP,
            marks=pytest.mark.clause("2.3", "nohup torchrun gets SIGHUP, and its ranks end without a checkpoint"),
            id="nohup-torchrun",
        ),
    ],
)
def test_ranks_of_a_launcher_that_ends(launcher: list[str], number: signal.Signals, tmp_path: Path) -> None:
    script = [f"{HERE}/train.py", *RUN]
    env = {**os.environ, "PYTHONPATH": HERE, "GAN_DIST_STATUS_FILE": str(tmp_path / "run/.status")}
    command = ["nohup"] * (number == signal.SIGHUP) + [sys.executable, "-m", *launcher, *script]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        read_until(process, "3.0/100000 kimg")
        process.send_signal(number)
        assert _status_of(tmp_path / "run") == 75
        assert process.stdout
        rest = process.stdout.read()
        newest = max(path.name for path in (tmp_path / "run/checkpoints").iterdir())
        assert f"stopped at {int(newest) / 1000:.1f} kimg" in rest
        if number == signal.SIGKILL:
            said = f"the launcher (process {process.pid}) has ended, so this run saves a checkpoint and stops"
            assert (tmp_path / "run/log.txt").read_text().count(said) == 1
    finally:
        for pid in _processes_in(tmp_path):
            os.kill(pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
@pytest.mark.clause("2.3", "SIGHUP ends a run without a checkpoint")
def test_hangup_saves_a_checkpoint(program: Program) -> None:
    process = program.start("train", *RUN)
    read_until(process, "3.0/100000 kimg")
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=END)
    assert process.returncode == 75
    assert max(int(path.name) for path in (program.cwd / "run/checkpoints").iterdir()) > 3000


@pytest.mark.slow
@pytest.mark.clause("2.3", "a run under nohup goes on after SIGHUP (as before)")
@pytest.mark.clause("2.3", "a detached run goes on when the shell that started it ends (as before)")
def test_plain_run_goes_on_without_its_shell_and_terminal(tmp_path: Path) -> None:
    """The shell ends at once; the run finishes by itself."""
    run = f'"{sys.executable}" -c "{COMMAND}" train {" ".join(RUN)} train.kimg=8'.replace("[", "\\[").replace(
        "]", "\\]"
    )
    env = {**os.environ, "PYTHONPATH": HERE, "GAN_DIST_STATUS_FILE": str(tmp_path / "run/.status")}
    shell = subprocess.run(
        ["sh", "-c", f"nohup {run} >out 2>&1 & echo $!"], cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + END
    while "1.0/8 kimg" not in (tmp_path / "out").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(int(shell.stdout), signal.SIGHUP)
    assert _status_of(tmp_path / "run") == 0
    assert (tmp_path / "run/checkpoints/000000008000").exists()


@pytest.mark.slow
@pytest.mark.clause("3.3", "Python without SIGUSR1 or SIGHUP, as on Windows")
def test_python_without_some_signals(program: Program) -> None:
    first = "import importlib, signal; del signal.SIGUSR1, signal.SIGHUP\n"
    # The process may be a fork of one that has imported these modules before.
    first += "import gan_dist.parallel.signals, gan_dist.cli.train\n"
    first += "importlib.reload(gan_dist.parallel.signals); importlib.reload(gan_dist.cli.train)"
    process = program.start("train", *TINY, "train.kimg=0.1", "run.dir=run", first=first)
    error = process.communicate(timeout=END)[1]
    assert process.returncode == 0, error


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user without threads")
@pytest.mark.clause("3.3", "threads that can't be started")
def test_threads_that_cannot_be_started(program: Program) -> None:
    """Limits on processes do not count for root. The other user may have no access to Python's library."""
    first = "import encodings.utf_8_sig, os, resource\n"
    first += "resource.setrlimit(resource.RLIMIT_NPROC, (0, 0)); os.setuid(65534)"
    process = program.start("train", *TINY, "train.kimg=0.1", "run.dir=run", first=first)
    error = process.communicate(timeout=END)[1]
    assert process.returncode == 1
    assert "no more threads or processes can be started (can't start new thread)" in error
    assert error.count("\n") == 1
