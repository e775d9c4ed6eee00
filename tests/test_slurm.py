"""The job scripts on a real SLURM of two nodes: ranks on both, requeues, crashes, dead nodes, evaluation."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from conftest import ROOT, TINY, run_here
from safetensors.torch import load_file
from slurm_cluster import start_node, wait_until
from slurm_jobs import CONFIG, LONG, Job, Slurm, last_checkpoint, weights

pytestmark = [pytest.mark.slow, pytest.mark.slurm]


@pytest.fixture(scope="module")
def two_nodes(slurm: Slurm) -> Job:
    """A finished run on two nodes."""
    job = slurm.submit("--nodes=2", *LONG)
    assert job.wait() == "COMPLETED", job.log
    return job


def test_run_on_two_nodes_is_the_one_without_slurm(two_nodes: Job, tmp_path: Path) -> None:
    assert "2 process(es) on 2 node(s)" in two_nodes.log
    plain = tmp_path / "plain"
    assert run_here(ROOT, "train", CONFIG, *TINY, "train.kimg=4", f"run.dir={plain}").returncode == 0
    for name in ("G", "D", "G_ema"):
        a, b = (load_file(run / f"checkpoints/000000004000/{name}.safetensors") for run in (plain, two_nodes.run_dir))
        assert all((a[k] - b[k]).norm() < 1e-3 * a[k].norm() for k in a)


def test_finished_run_exits_at_once(slurm: Slurm, two_nodes: Job) -> None:
    job = slurm.submit("", *LONG, run_dir=two_nodes.run_dir)
    assert job.wait() == "COMPLETED", job.log
    assert job.fact("Restarts") == "0"
    assert "finished" in job.log
    assert "2.0/20 kimg" not in job.log


def test_run_survives_a_requeue_a_killed_rank_and_a_dead_node(slurm: Slurm, two_nodes: Job) -> None:
    """One job goes through them one after another, and ends like a run that nothing has happened to."""
    job = slurm.submit("--nodes=2", *LONG)
    job.wait_for("3.0/20 kimg")
    slurm("scontrol", "requeue", job.id)
    _wait_until_it_trains_again(job, 1)
    assert "stopped at" in job.log
    os.kill(job.ranks()[1], signal.SIGKILL)
    _wait_until_it_trains_again(job, 2)
    assert "lost rank 1" in job.log
    assert "failed with exit status 137" in job.log
    _kill_second_node(slurm, job)
    wait_until(lambda: "n2:mixed*" in slurm("sinfo", "--noheader", "--Node", "--format=%N:%T"), 60)  # it is missed
    start_node("n2", slurm.env)
    assert job.wait() == "COMPLETED", job.log
    assert job.fact("Restarts") == "3"
    assert weights(job.run_dir) == weights(two_nodes.run_dir)


def _wait_until_it_trains_again(job: Job, restarts: int) -> None:
    wait_until(lambda: "/20 kimg" in "".join(job.log.split("going on from")[restarts:]), 120)


def _kill_second_node(slurm: Slurm, job: Job) -> None:
    """Kill SLURM's daemon on n2, the job's step there and its rank, as a power failure would."""
    rank = job.ranks()[1]
    step = int(Path(f"/proc/{rank}/stat").read_text().rpartition(")")[2].split()[1])
    daemon = int(Path(slurm.env["SLURM_CONF"]).with_name("slurmd-n2.pid").read_text())
    for pid in (daemon, step, rank):
        os.kill(pid, signal.SIGKILL)


def test_all_checkpoints_are_evaluated_on_all_ranks_once(slurm: Slurm, two_nodes: Job) -> None:
    for _ in range(2):
        log = slurm.folder / "evaluate.log"
        command = f"sbatch --parsable --output={log} --nodes=2 --cpus-per-task=1 slurm/evaluate.sbatch"
        arguments = [str(two_nodes.run_dir), "--n", "100"]
        job = Job(slurm(*command.split(), *arguments).strip(), two_nodes.run_dir, log, slurm.env)
        assert job.wait() == "COMPLETED", job.log
    lines = [json.loads(line) for line in (two_nodes.run_dir / "evaluations.jsonl").read_text().splitlines()]
    assert [line["checkpoint"] for line in lines] == sorted(
        path.name for path in last_checkpoint(two_nodes.run_dir).parent.iterdir()
    )


def test_accelerate_launch_on_each_node(slurm: Slurm, two_nodes: Job) -> None:
    job = slurm.submit("--nodes=2", *LONG, script="accelerate")
    job.wait_for("3.0/20 kimg")
    slurm("scancel", "--signal=TERM", job.id)
    assert job.wait() == "COMPLETED", job.log
    assert job.fact("Restarts") == "1"
    assert "failed" not in job.log
    assert "2 process(es) on 2 node(s)" in job.log
    assert weights(job.run_dir) == weights(two_nodes.run_dir)
