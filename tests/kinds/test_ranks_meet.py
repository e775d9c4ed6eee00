"""Ranks before they have a process group: missing, refused, killed, or in an environment that is half set."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Iterator

import pytest
from conftest import TINY
from launched import free_port, launched
from program import Program

RUN = ["train", *TINY, "train.kimg=0.1", "run.dir=run"]
END = 60
# The product says who is missing after 30 seconds, and misses heartbeats for as long. The tests need not wait.
QUICK = """
from gan_dist.parallel import peers
try:
    from gan_dist.parallel import rendezvous
    peers.BEAT, peers.SILENCE, rendezvous.SAY, rendezvous.ANSWER = 0.2, 4.0, 1.0, 10.0
except ImportError:
    pass  # a tree in which ranks do not meet
"""


@pytest.fixture
def port() -> int:
    return free_port()


def _env(rank: int, size: int, port: int | str) -> dict[str, str]:
    return launched(size, port)[rank]


def _start(program: Program, rank: int, size: int, port: int, *settings: str) -> subprocess.Popen[str]:
    return program.start(*RUN, *settings, env=_env(rank, size, port), first=QUICK)


def _end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit status and standard error of a process that ends by itself."""
    error = process.communicate(timeout=END)[1]
    return process.returncode, error


def _wait_for_line(process: subprocess.Popen[str], text: str) -> str:
    """Read standard output up to a line with the text. A process that does not print it is killed."""
    assert process.stdout
    timer = threading.Timer(END, process.kill)
    timer.start()
    try:
        return next((line for line in process.stdout if text in line), "")
    finally:
        timer.cancel()


@pytest.mark.slow
@pytest.mark.clause("2.2", "a rank that is not there is not named, and the others wait in silence")
def test_missing_rank_is_named_and_may_still_come(program: Program, port: int) -> None:
    first = _start(program, 0, 2, port)
    assert f"waiting for rank 1 of 2 at 127.0.0.1:{port}; after 10 minutes the start" in _wait_for_line(first, "wait")
    second = _start(program, 1, 2, port)
    assert [_end(process)[0] for process in (first, second)] == [0, 0]
    assert "waiting for rank 1 of 2" in (program.cwd / "run/log.txt").read_text()


@pytest.mark.slow
@pytest.mark.clause("2.2", "ranks wait for one that never comes, without an end")
def test_wait_for_a_rank_that_never_comes_ends(program: Program, port: int) -> None:
    alone = [_start(program, rank, 2, port + rank, "train.meet_minutes=0.01") for rank in (0, 1)]
    for missing, process in zip((1, 0), alone):
        status, error = _end(process)
        assert status == 1
        assert f"waited for rank {missing} of 2 at 127.0.0.1:{port + 1 - missing}" in error
        assert "for 0.01 minutes, in vain" in error
        assert error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.clause("2.2", "a rank that is killed before the group exists leaves the others waiting")
def test_rank_that_is_killed_before_the_group_exists(program: Program, port: int) -> None:
    first, second = (_start(program, rank, 3, port) for rank in (0, 1))
    assert "waiting for rank 2 of 3" in _wait_for_line(first, "waiting for rank 2 of 3"), "rank 1 has come"
    second.kill()
    status, error = _end(first)
    assert status == 1
    assert f"lost rank 1 ({socket.gethostname()}, pid {second.pid}): no heartbeat" in error


@pytest.mark.slow
@pytest.mark.parametrize("refused", [0, 1])
@pytest.mark.clause("2.2", "a rank that is refused leaves the others waiting")
def test_refused_rank_ends_all(refused: int, program: Program, port: int) -> None:
    """It is refused before it imports torch, and before the others are there."""
    settings = [["train.batch_size=many"] if rank == refused else [] for rank in range(3)]
    ranks = [_start(program, rank, 3, port, *its) for rank, its in enumerate(settings)]
    for rank, process in enumerate(ranks):
        status, error = _end(process)
        assert status == 2, error
        if rank != refused:
            assert f"stopped, because rank {refused} failed: command line: train.batch_size=many must be" in error
            assert error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.clause("2.2", "ranks that are all refused print one line and end (as before)")
def test_ranks_that_are_all_refused_print_one_line(program: Program, port: int) -> None:
    ends = [_end(process) for process in [_start(program, rank, 2, port, "train.batch_size=many") for rank in (0, 1)]]
    assert [status for status, _ in ends] == [2, 2]
    assert "train.batch_size=many must be a whole number" in ends[0][1]
    assert "".join(error for _, error in ends).count("\n") == 1


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which another program listens, which says nothing."""
    with socket.create_server(("", 0)) as server:
        yield int(server.getsockname()[1])


@pytest.mark.slow
@pytest.mark.clause("2.2", "a taken port gives C++ text, and the other ranks wait")
def test_taken_port(program: Program, taken: int) -> None:
    ranks = [_start(program, rank, 2, taken) for rank in (0, 1)]
    (status, error), (other_status, other_error) = (_end(process) for process in ranks)
    assert (status, other_status) == (1, 1)
    assert f"MASTER_PORT={taken}: rank 0 cannot use this port" in error
    assert f"MASTER_PORT={taken}: another program answers there" in other_error
    assert (error + other_error).count("\n") == 2


@pytest.mark.slow
@pytest.mark.clause("2.2", "a rank with another WORLD_SIZE waits for ever")
def test_rank_with_another_world_size(program: Program, port: int) -> None:
    ranks = [_start(program, 0, 2, port, "train.meet_minutes=0.1"), _start(program, 1, 3, port)]
    (status, _), (other_status, error) = (_end(process) for process in ranks)
    assert (status, other_status) == (1, 1)
    assert f"WORLD_SIZE=3, but the run at 127.0.0.1:{port} has 2 processes" in error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "text"),
    [
        pytest.param(env, text, marks=pytest.mark.clause("2.2", f"an environment with {what}"), id=what)
        for what, env, text in [
            ("MASTER_PORT=text", _env(0, 2, "text"), "MASTER_PORT=text must be a port number"),
            ("MASTER_PORT=0", _env(0, 2, 0), "MASTER_PORT=0 must be a port number"),
            ("MASTER_PORT=70000", _env(1, 2, 70000), "MASTER_PORT=70000 must be a port number"),
            ("LOCAL_RANK alone", {"LOCAL_RANK": "0"}, "has LOCAL_RANK=0, but no value of RANK and WORLD_SIZE and"),
            ("WORLD_SIZE=", {"WORLD_SIZE": ""}, "the environment has WORLD_SIZE=, but no value of RANK and WORLD"),
            ("no RANK", {"WORLD_SIZE": "2"}, "has WORLD_SIZE=2, but no value of RANK and LOCAL_RANK and MASTER_A"),
            ("no MASTER_ADDR", {**_env(1, 2, 29400), "MASTER_ADDR": ""}, "but no value of MASTER_ADDR, so it is"),
            ("RANK=2 of two", {**_env(1, 2, 29400), "RANK": "2"}, "RANK=2 must be below the number of processes"),
            ("RANK=first", {**_env(0, 2, 29400), "RANK": "first"}, "RANK=first must be a whole number"),
            ("an unknown host", {**_env(1, 2, 29400), "MASTER_ADDR": "no..where"}, "no..where: no host has this name"),
        ]
    ],
)
def test_impossible_environment(env: dict[str, str], text: str, program: Program) -> None:
    result = program.process(*RUN, env=env, timeout=END)
    assert result.returncode == 2, result.stderr
    assert text in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (program.cwd / "run").exists()


@pytest.mark.parametrize(
    ("name", "value", "instead"),
    [
        pytest.param(*values, marks=pytest.mark.clause("2.2", f"accelerate launch's own {values[0]} is ignored"))
        for values in [
            ("ACCELERATE_USE_FSDP", "true", "launch without FSDP"),
            ("ACCELERATE_USE_DEEPSPEED", "true", "launch without DeepSpeed"),
            ("ACCELERATE_USE_MEGATRON_LM", "true", "launch without Megatron-LM"),
            ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "set train.micro_batch_size instead"),
            ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "set train.compile=true instead"),
        ]
    ],
)
def test_settings_of_accelerate_that_would_change_the_training(
    name: str, value: str, instead: str, program: Program
) -> None:
    result = program.train("train.kimg=0.1", "run.dir=run", env={name: value})
    assert result.returncode == 2
    assert f"{name}={value}, which accelerate launch sets, would change the training" in result.stderr
    assert instead in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (program.cwd / "run").exists()
