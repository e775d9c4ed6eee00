"""The job scripts on a real SLURM: time limits, cancelled jobs, settings that cannot be, arrays, followers."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import ROOT
from slurm_cluster import wait_until
from slurm_jobs import LONG, Job, Slurm, last_checkpoint, run

pytestmark = [pytest.mark.slow, pytest.mark.slurm]


@pytest.fixture(scope="module", autouse=True)
def chained(slurm: Slurm) -> Job:
    """A job that is warned of its time limit: submitted first, looked at last. It sleeps until the warning has come."""
    job = slurm.submit("--time=2 --signal=USR1@100", "train.kimg=40", "checkpoint.every_kimg=1000")
    _asleep(job, signal.SIGUSR1)
    return job


@pytest.fixture(scope="module", autouse=True)
def unwarned(slurm: Slurm) -> Job:
    """A job whose time limit passes without a warning, likewise. It sleeps until then and leaves the CPUs to others."""
    job = slurm.submit("--time=1 --signal=USR1@0", "train.kimg=40", "checkpoint.every_kimg=1000")
    _asleep(job, None)  # before its SIGTERM, SLURM sends SIGCONT
    return job


def _asleep(job: Job, until: signal.Signals | None) -> None:
    """Suspend a job's only process in its first iterations, which leaves the CPUs to others, until a signal waits.

    Without a signal, it stays suspended until the time limit has passed. Its next start gets more time in either case.
    """

    def suspend() -> None:
        job.wait_for("1.0/40 kimg")
        with suppress(OSError, KeyError):  # on a busy machine the signal may come before
            pid = job.ranks()[0]
            os.kill(pid, signal.SIGSTOP)
            if until:
                wait_until(lambda: _is_pending(pid, until), 90)
                os.kill(pid, signal.SIGCONT)
        if not until:
            job.wait_for("this job goes on later")
        run(["scontrol", "update", f"JobId={job.id}", "TimeLimit=30"], job.env)  # a slow machine needs it

    threading.Thread(target=suspend, daemon=True).start()


def _is_pending(pid: int, number: signal.Signals) -> bool:
    sets = re.findall(r"^(?:SigPnd|ShdPnd):\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return any(int(digits, 16) >> (number - 1) & 1 for digits in sets)


def test_cancelled_job_is_checkpointed_and_stays_cancelled(slurm: Slurm) -> None:
    job = slurm.submit("--gpus-per-node=2", *LONG, "checkpoint.every_kimg=0")
    job.wait_for("2.0/20 kimg")
    assert "2 process(es) on 1 node(s)" in job.log
    slurm("scancel", job.id)
    assert job.wait() == "CANCELLED"
    wait_until(lambda: job.id not in slurm("squeue", "--noheader", "--format=%i"), 60)
    assert "stopped at" in job.log
    assert int(last_checkpoint(job.run_dir).name) > 2000
    assert job.fact("Restarts") == "0"


def test_settings_that_cannot_be_are_not_tried_again(slurm: Slurm) -> None:
    scripts = ("train", "accelerate")  # together, which takes half the time
    for job in [slurm.submit("--nodes=2", "loss.name=wrong", script=script) for script in scripts]:
        assert job.wait() == "FAILED"
        assert job.fact("ExitCode") == "2:0", job.log
        assert job.fact("Restarts") == "0"
        assert job.log.count("loss.name=wrong: choose one of") == 1


def test_job_that_always_fails_gives_up(slurm: Slurm, tmp_path: Path) -> None:
    job = slurm.submit("", "data.name=FashionMNIST", f"data.root={tmp_path}", "model.conditional=false")
    assert job.wait() == "FAILED"
    assert job.fact("Restarts") == "2"
    assert "gave up: 3 starts from the beginning" in job.log


def test_array_makes_a_run_each_and_requeues_one_alone(slurm: Slurm) -> None:
    """The last one to start has the whole array's number: it too goes back to the queue alone."""
    array = slurm.submit("--array=1-3", *LONG, "train.kimg=40", script="sweep")  # a single process is faster
    jobs = [Job(f"{array.id}_{i}", array.run_dir / str(i), array.log_file, array.env) for i in (1, 2, 3)]
    wait_until(lambda: (jobs[1].run_dir / "checkpoints/000000004000").exists(), 120)
    slurm("scontrol", "requeue", jobs[1].id)
    slurm("scancel", "--signal=USR1", jobs[2].id)
    assert [job.wait() for job in jobs] == ["COMPLETED"] * 3, array.log
    assert [job.fact("Restarts") for job in jobs] == ["0", "1", "1"]
    seeds = [json.loads((job.run_dir / "checkpoints/000000040000/state.json").read_text()) for job in jobs]
    assert len(seeds) == 3
    configs = [(job.run_dir / "config.yaml").read_text() for job in jobs]
    assert [re.findall(r"\n  seed: (\d)", config)[0] for config in configs] == ["1", "2", "3"]


def test_array_takes_settings_from_a_file(slurm: Slurm, tmp_path: Path) -> None:
    (tmp_path / "settings").write_text("loss.name=minimax\nloss.r1_gamma=0.5 train.seed=7")  # no newline at the end
    array = slurm.submit("--array=2-3", f"settings={tmp_path / 'settings'}", script="sweep")
    second, third = (Job(f"{array.id}_{i}", array.run_dir / str(i), array.log_file, array.env) for i in (2, 3))
    assert second.wait() == "COMPLETED", array.log
    assert "r1_gamma: 0.5" in (second.run_dir / "config.yaml").read_text()
    assert third.wait() == "FAILED"
    assert f"{tmp_path / 'settings'} has no line 3" in array.log


def test_two_jobs_on_one_node(slurm: Slurm) -> None:
    options = "--nodelist=n1 --gpus-per-node=0 --ntasks-per-node=2"
    jobs = [slurm.submit(options) for _ in range(2)]
    assert [job.wait() for job in jobs] == ["COMPLETED"] * 2
    ports = [re.findall(r"they meet at 127.0.0.1:(\d+)", job.log)[0] for job in jobs]
    assert ports[0] != ports[1]
    starts, ends = ([job.fact(name) for job in jobs] for name in ("StartTime", "EndTime"))
    assert max(starts) < min(ends)  # they ran at the same time


def test_another_job_follows_where_requeueing_is_off(slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets the same words, so a user's parts are there too."""
    monkeypatch.setitem(slurm.env, "SBATCH_CONSTRAINT", "pretended")
    path = [str(ROOT / "tests"), *filter(None, [slurm.env.get("PYTHONPATH")])]
    monkeypatch.setitem(slurm.env, "PYTHONPATH", os.pathsep.join(path))
    parts = ["plugins=[users_parts]", "loss.name=margin", "loss.args.width=0.5", "callbacks.count.every_kimg=5"]
    job = slurm.submit("--no-requeue --nodes=2 --time=7", *LONG, *parts, "tracking.wandb=offline")
    job.wait_for("3.0/20 kimg")
    slurm("scancel", "--signal=USR1", job.id)
    job.wait_for("Submitted batch job")
    assert job.wait() == "COMPLETED"
    follower = Job(re.findall(r"Submitted batch job (\d+)", job.log)[0], job.run_dir, job.log_file, job.env)
    assert follower.wait() == "COMPLETED", job.log
    assert [follower.fact(name) for name in ("NumNodes", "TimeLimit", "Features")] == ["2", "00:07:00", "pretended"]
    assert last_checkpoint(job.run_dir).name == "000000020000"
    facts = json.loads((last_checkpoint(job.run_dir) / "state.json").read_text())
    assert facts["callbacks"] == {"count": {"calls": 5}}, "at the start, and after each 5 kimg"
    assert facts["environment"]["plugins"] == "users_parts"
    wandb_runs = [path.name.rpartition("-")[2] for path in (job.run_dir / "wandb").glob("offline-run-*")]
    assert wandb_runs == [(job.run_dir / "wandb_id.txt").read_text().split()[0]] * 2


def test_time_limit_shorter_than_training(chained: Job) -> None:
    """It finishes by requeues alone."""
    assert chained.wait(240) == "COMPLETED", chained.log
    assert int(chained.fact("Restarts")) >= 1
    assert "the time limit has passed" not in chained.log
    assert last_checkpoint(chained.run_dir).name == "000000040000"


def test_time_limit_that_passes_without_a_warning(unwarned: Job) -> None:
    assert unwarned.wait() == "COMPLETED", unwarned.log
    assert unwarned.fact("Restarts") == "1"
    assert "the time limit has passed" in unwarned.log
    assert "going on from" in unwarned.log
