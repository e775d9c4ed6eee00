"""Training that does not fit into memory is said before it starts, and `gan-dist plan` counts what a run takes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import ROOT, SMALL, TINY
from program import COMMAND, TREE, Program

MODEL = ["data.image_size=16", "model.name=r3gan", *SMALL["r3gan"], "loss.name=relativistic"]


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.clause("4.5", "a run that takes more memory than is allowed is killed without a line")
def test_too_much_memory_is_said_with_the_setting_to_change(program: Program) -> None:
    """The limit is that of a control group, which is a file in a mount namespace of the test's own."""
    settings = [*TINY, *MODEL, "train.batch_size=1024", "train.kimg=1", "sample.every_kimg=0", "run.dir=run"]
    limit = 'mount -t tmpfs tmpfs /sys/fs/cgroup && echo 700000000 > /sys/fs/cgroup/memory.max && exec "$@"'
    whole = ["unshare", "-m", "sh", "-c", limit, "sh", sys.executable, "-c", COMMAND, "train", *settings]
    env = {**os.environ, "PYTHONPATH": TREE or str(ROOT)}
    ended = subprocess.run(whole, cwd=program.cwd, env=env, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    for output in (ended.stdout, (program.cwd / "run/log.txt").read_text()):
        (said,) = [line for line in output.splitlines() if "may be killed" in line]
        assert "take about 0.8 GB of memory, and 0.7 GB are allowed; set train.micro_batch_size=512" in said


def _memory(program: Program, *settings: str) -> float:
    """The column "memory each" in GB of a plan for one GPU."""
    planned = program("plan", "--gpu", "h100", *settings)
    assert planned.returncode == 0, planned.stderr
    (row,) = [line.split() for line in planned.stdout.splitlines() if line.endswith("100%")]
    return float(row[4])


@pytest.mark.clause("4.5", "plan counts two moments for every optimizer")
def test_plan_counts_the_moments_of_the_optimizer(program: Program) -> None:
    settings = ["model.g_widths=[4096]", "model.d_widths=[4096]"]
    adam = _memory(program, *settings)
    assert _memory(program, *settings, "optim.G.name=SGD", "optim.D.name=SGD") < 0.7 * adam


@pytest.mark.clause("4.5", "plan does not count a data set that is larger than data.memory_gib, but kept in memory")
def test_plan_counts_data_that_are_always_in_memory(program: Program) -> None:
    assert _memory(program, "data.name=MNIST", "data.memory_gib=0.001") == _memory(program, "data.name=MNIST")


@pytest.mark.slow
@pytest.mark.clause("4.5", "plan calls processes on CPUs GPUs")
def test_plan_names_processes(program: Program) -> None:
    planned = program("plan", "--gpus", "1,2", "model.g_widths=[32]", "model.d_widths=[32]")
    assert planned.returncode == 0, planned.stderr
    assert "GPU" not in planned.stdout
    assert "processes images each" in planned.stdout
