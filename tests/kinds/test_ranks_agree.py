"""Ranks that do not agree: on settings, sources, libraries, or on how many they are."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, TINY
from forks import Forked
from launched import launched
from program import COMMAND, TREE, Program

HERE = Path(TREE or ROOT)
RUN = ["train", *TINY, "train.kimg=0.1", "run.dir=run"]
END = 60  # seconds within which all processes end, on a machine that is busy


def _ends(processes: list[subprocess.Popen[str]], status: int) -> list[str]:
    """Wait for the end of all ranks, and return what each has printed on standard error."""
    errors = [process.communicate(timeout=END)[1] for process in processes]
    assert [process.returncode for process in processes] == [status] * len(processes), errors
    return errors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "other", "main"),
    [
        pytest.param(*values, marks=pytest.mark.clause("1.2", f"rank 1 has another {values[0]}: {what}"))
        for what, cases in {
            "wrong weights": [
                ("optim.G.lr", "0.001", "0.0002"),
                ("loss.name", "hinge", "non_saturating"),
                ("train.seed", "1", "0"),
                ("data.hflip", "true", "false"),
                ("train.augment", "['color']", "[]"),
                ("train.precision", "fp64", "fp32"),
            ],
            "a hang": [
                ("loss.r1_gamma", "0.5", "0.25"),
                ("train.kimg", "0.2", "0.1"),
                ("train.n_critic", "2", "1"),
                ("sample.every_kimg", "1.0", "2.0"),
            ],
            "C++ text": [("model.g_widths", "[64]", "[32]")],
        }.items()
        for values in cases
    ],
)
def test_other_settings_on_one_rank(setting: str, other: str, main: str, program: Program) -> None:
    same = [*RUN, f"{setting}={main}"] if setting == "loss.r1_gamma" else RUN
    errors = _ends(program.ranks(same, [*RUN, f"{setting}={other}"]), 2)
    # On a busy machine the other one may hear of the failure first, and then says that it stops because of it.
    assert not errors[1] or errors[1].startswith(
        "gan-dist: rank 1: error: stopped, because rank 0 failed: the processes"
    )
    assert errors[0].count("\n") == 1
    assert f"rank 1 has {setting}={other}, rank 0 has {setting}={main}" in errors[0]
    assert not (program.cwd / "run").exists()


@pytest.mark.slow
@pytest.mark.clause("1.2", "rank 1 computes in another way: a variable that switches TF32 off")
@pytest.mark.clause("1.2", "rank 1 has other source files of the package")
def test_other_sources_and_numerics_on_one_rank(program: Program, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(HERE / "gan_dist", copy / "gan_dist", ignore=shutil.ignore_patterns("__pycache__"))
    with (copy / "gan_dist/engine/step.py").open("a") as file:
        file.write("# another version\n")
    first, second = launched(2)
    errors = _ends([program.start(*RUN, env=first), _start_fresh(tmp_path, copy, RUN, second)], 2)
    assert "rank 1 has the hash of gan_dist/engine/step.py=" in errors[0]
    second["NVIDIA_TF32_OVERRIDE"] = "0"
    errors = _ends([program.start(*RUN, env=place) for place in (first, second)], 2)
    assert "rank 1 has NVIDIA_TF32_OVERRIDE=0, rank 0 has NVIDIA_TF32_OVERRIDE=" in errors[0]


@pytest.mark.slow
@pytest.mark.clause("1.2", "ranks on other processors get other bits, and nothing is said")
def test_data_in_another_directory_and_another_processor_are_allowed(program: Program) -> None:
    """One process takes itself for a processor without vector instructions; torch reads the variable once."""
    copy, places = program.cwd / "elsewhere", launched(2)
    copy.mkdir()
    places[1]["ATEN_CPU_CAPABILITY"] = "default"
    first = program.start(*RUN, env=places[0])
    _ends([first, _start_fresh(program.cwd, HERE, [*RUN, "data.root=elsewhere"], places[1])], 0)
    log = (program.cwd / "run/log.txt").read_text()
    assert log.count("rank 1 has the processor=CPU, ") == 1
    assert "the same bits as on equal processors are not promised" in log


def _start_fresh(cwd: Path, tree: Path, arguments: list[str], env: dict[str, str]) -> subprocess.Popen[str]:
    """Start the command line of a tree in a process that imports everything itself."""
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments],
        cwd=cwd,
        env={**os.environ, **env, "PYTHONPATH": str(tree)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}


@pytest.mark.parametrize(
    ("env", "text"),
    [
        pytest.param(
            {**STEP, "SLURM_PROCID": "1"},
            "SLURM_STEP_NUM_TASKS=2 processes were started, but no RANK says which of them this one is, so each would "
            "train by itself in the same directory: start the job with slurm/train.sbatch",
            marks=pytest.mark.clause("1.2", "two tasks of a SLURM step without RANK train separately in one directory"),
        ),
        pytest.param(
            {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"},
            "OMPI_COMM_WORLD_SIZE=2 processes were started, but no RANK",
            marks=pytest.mark.clause("1.2", "two processes of mpirun without RANK train separately in one directory"),
        ),
    ],
)
def test_tasks_that_would_train_separately(env: dict[str, str], text: str, program: Program) -> None:
    result = program.train("train.kimg=0.1", "run.dir=run", env=env)
    assert result.returncode == 2
    assert text in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (program.cwd / "run").exists()


@pytest.mark.clause("1.2", "a shell of salloc with several tasks trains in one process (as before)")
def test_shell_of_salloc_trains(program: Program) -> None:
    """The shell is a step of its own with one task, or no step at all; then it has fewer of these variables."""
    shell = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_NPROCS": "4"}
    step = {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}
    result = program.train("train.kimg=0.1", "run.dir=run", env={**shell, **step})
    assert result.returncode == 0, result.stderr


SCRIPT = """if True:
    import os, sys, threading, time
    from datetime import timedelta
    from torch.distributed import TCPStore
    from gan_dist.parallel.agreement import difference
    from gan_dist.parallel.peers import Peers
    size, answers, seconds = 64, {}, {}
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    stores = [TCPStore("127.0.0.1", server.port, is_master=False, wait_for_workers=False) for _ in range(size)]
    peers = [Peers(store, rank, size) for rank, store in enumerate(stores)]
    start = threading.Barrier(size)
    def compare(rank, number, facts):
        start.wait()
        begun = time.perf_counter()
        answers[number, rank] = difference(peers[rank], facts)
        seconds[number, rank] = time.perf_counter() - begun
    for number, odd in enumerate([None, 40]):
        facts = {f"setting {i}": "a value" for i in range(200)}
        threads = [
            threading.Thread(target=compare, args=(r, number, {**facts, **({"setting 7": "x"} if r == odd else {})}))
            for r in range(size)
        ]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
    for number in range(2):
        longest = max(seconds[number, rank] for rank in range(size))
        print({answers[number, rank] for rank in range(size)}, f"{longest:.3f} s")
    sys.stdout.flush()
    os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.clause("1.2", "64 ranks on one store compare what must agree")
def test_many_ranks_on_one_store(tmp_path: Path) -> None:
    """64 threads, each with connections of its own to the store."""
    process: subprocess.Popen[str]
    if TREE:
        command, env, pipe = [sys.executable, "-c", SCRIPT], {**os.environ, "PYTHONPATH": TREE}, subprocess.PIPE
        process = subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, text=True)
    else:
        process = Forked(["-c", SCRIPT], tmp_path, dict(os.environ))
    out, error = process.communicate(timeout=END)
    assert process.returncode == 0, error
    same, other = out.splitlines()
    assert same.startswith("{''} ")
    assert other.startswith("{'rank 40 has setting 7=x, rank 0 has setting 7=a value'} ")
