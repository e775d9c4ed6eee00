"""The job scripts on a real SLURM of two nodes: ranks, requeues, time limits, crashes, arrays."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT, TINY, run_here
from safetensors.torch import load_file
from slurm_cluster import cluster, missing, start_node, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.slurm]

CONFIG = str(ROOT / "configs/digits.yaml")
LONG = ["train.kimg=32", "checkpoint.every_kimg=4", "checkpoint.keep=0"]  # some 8 seconds, time enough to interrupt
ENDED = {"COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL"}


@dataclass
class Job:
    """A submitted job."""

    id: str
    run_dir: Path
    log_file: Path
    env: dict[str, str]

    def fact(self, name: str) -> str:
        shown = _output(["scontrol", "show", "job", self.id], self.env)
        return re.findall(rf"\b{name}=(\S*)", shown)[0]

    @property
    def log(self) -> str:
        return self.log_file.read_text() if self.log_file.exists() else ""

    def wait(self, seconds: float = 120) -> str:
        """Its last state."""
        try:
            wait_until(lambda: self.fact("JobState") in ENDED, seconds)
        except TimeoutError:
            pytest.fail(f"job {self.id} is {self.fact('JobState')}:\n{self.log}")
        return self.fact("JobState")

    def wait_for(self, text: str) -> None:
        try:
            wait_until(lambda: text in self.log, 120)
        except TimeoutError:
            pytest.fail(f"no {text!r} in the log of job {self.id}:\n{self.log}")

    def ranks(self) -> dict[int, int]:
        """Process numbers by rank."""
        found = {}
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                env = dict(item.partition("=")[::2] for item in path.read_text(errors="replace").split("\0"))
                if env.get("SLURM_JOB_ID") == self.id and "RANK" in env:
                    parent = Path(path.parent, "stat").read_text().rpartition(")")[2].split()[1]
                    found[int(path.parent.name)] = (int(parent), int(env["RANK"]))
        return {rank: pid for pid, (parent, rank) in found.items() if parent not in found}  # no workers


class Slurm:
    """Submits from the top of the clone, as users do."""

    def __init__(self, env: dict[str, str], folder: Path) -> None:
        self.env, self.folder, self.count = env, folder, 0

    def submit(self, options: str, *arguments: str, script: str = "train", run_dir: Path | None = None) -> Job:
        self.count += 1
        log_file, run_dir = self.folder / f"{self.count}.log", run_dir or self.folder / f"run{self.count}"
        command = ["sbatch", "--parsable", f"--output={log_file}", "--cpus-per-task=1", *options.split()]
        settings = [*TINY, *arguments, f"run.dir={run_dir}"]
        job = _output([*command, f"slurm/{script}.sbatch", CONFIG, *settings], self.env).strip()
        return Job(job, run_dir, log_file, self.env)

    def __call__(self, *command: str) -> str:
        return _output(list(command), self.env)


def _output(command: list[str], env: dict[str, str]) -> str:
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, f"{command}: {result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    if missing():
        pytest.skip(f"needs {', '.join(missing())}: apt-get install slurm-wlm munge")
    folder = tmp_path_factory.mktemp("slurm")
    with cluster() as env:
        env.pop("OMP_NUM_THREADS", None)
        env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
        yield Slurm(env, folder)


@pytest.fixture(scope="module", autouse=True)
def chained(slurm: Slurm) -> Job:
    """A job that is warned of its time limit: submitted first, looked at last. It sleeps until the warning has come."""
    job = slurm.submit("--time=1 --signal=USR1@40", "train.kimg=40", "checkpoint.every_kimg=1000")
    _asleep(job, signal.SIGUSR1)
    return job


@pytest.fixture(scope="module", autouse=True)
def unwarned(slurm: Slurm) -> Job:
    """A job whose time limit passes without a warning, likewise. It sleeps until then and leaves the CPUs to others."""
    job = slurm.submit("--time=1 --signal=USR1@0", "train.kimg=40", "checkpoint.every_kimg=1000")
    _asleep(job, None)  # before its SIGTERM, SLURM sends SIGCONT
    return job


def _asleep(job: Job, until: signal.Signals | None) -> None:
    """Suspend a job's only process in its first iterations, which leaves the CPUs to others, until a signal waits."""

    def suspend() -> None:
        job.wait_for("1.0/40 kimg")
        with suppress(OSError, KeyError):  # on a busy machine the signal may come before
            pid = job.ranks()[0]
            os.kill(pid, signal.SIGSTOP)
            if until:
                wait_until(lambda: _is_pending(pid, until), 90)
                os.kill(pid, signal.SIGCONT)
        if until:  # a slow machine would need all of a minute to start again
            _output(["scontrol", "update", f"JobId={job.id}", "TimeLimit=30"], job.env)

    threading.Thread(target=suspend, daemon=True).start()


def _is_pending(pid: int, number: signal.Signals) -> bool:
    sets = re.findall(r"^(?:SigPnd|ShdPnd):\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return any(int(digits, 16) >> (number - 1) & 1 for digits in sets)


def _last(run_dir: Path) -> Path:
    return max((run_dir / "checkpoints").iterdir())


def _weights(run_dir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in _last(run_dir).glob("*.safetensors")}


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


def test_requeued_run_ends_like_one_that_never_was(slurm: Slurm, two_nodes: Job) -> None:
    job = slurm.submit("--nodes=2", *LONG)
    job.wait_for("6.0/32 kimg")
    slurm("scontrol", "requeue", job.id)
    assert job.wait() == "COMPLETED", job.log
    assert job.fact("Restarts") == "1"
    assert "stopped at" in job.log
    assert "going on from" in job.log
    assert _weights(job.run_dir) == _weights(two_nodes.run_dir)


def test_cancelled_job_is_checkpointed_and_stays_cancelled(slurm: Slurm) -> None:
    job = slurm.submit("--gpus-per-node=2", *LONG, "checkpoint.every_kimg=0")
    job.wait_for("2.0/32 kimg")
    assert "2 process(es) on 1 node(s)" in job.log
    slurm("scancel", job.id)
    assert job.wait() == "CANCELLED"
    wait_until(lambda: job.id not in slurm("squeue", "--noheader", "--format=%i"), 60)
    assert "stopped at" in job.log
    assert int(_last(job.run_dir).name) > 2000
    assert job.fact("Restarts") == "0"


def test_finished_run_exits_at_once(slurm: Slurm, two_nodes: Job) -> None:
    job = slurm.submit("--nodes=2", *LONG, run_dir=two_nodes.run_dir)
    assert job.wait() == "COMPLETED", job.log
    assert job.fact("Restarts") == "0"
    assert "finished" in job.log
    assert "2.0/32 kimg" not in job.log


def test_killed_rank_requeues_the_job(slurm: Slurm, two_nodes: Job) -> None:
    job = slurm.submit("--nodes=2", *LONG)
    job.wait_for("6.0/32 kimg")
    os.kill(job.ranks()[1], signal.SIGKILL)
    wait_until(lambda: job.fact("Restarts") == "1", 60)
    assert job.wait() == "COMPLETED", job.log
    assert "lost rank 1" in job.log
    assert "failed with exit status 137" in job.log
    assert _weights(job.run_dir) == _weights(two_nodes.run_dir)


def test_dead_node_requeues_the_job(slurm: Slurm, two_nodes: Job) -> None:
    job = slurm.submit("--nodes=2", *LONG)
    job.wait_for("6.0/32 kimg")
    rank = job.ranks()[1]
    step = int(Path(f"/proc/{rank}/stat").read_text().rpartition(")")[2].split()[1])
    daemon = int(Path(slurm.env["SLURM_CONF"]).with_name("slurmd-n2.pid").read_text())
    for pid in (daemon, step, rank):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: "n2:mixed*" in slurm("sinfo", "--noheader", "--Node", "--format=%N:%T"), 60)  # it is missed
    start_node("n2", slurm.env)
    assert job.wait() == "COMPLETED", job.log
    assert job.fact("Restarts") == "1"
    assert _weights(job.run_dir) == _weights(two_nodes.run_dir)


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
    array = slurm.submit("--array=1-3", *LONG, "train.kimg=60", script="sweep")  # a single process is faster
    jobs = [Job(f"{array.id}_{i}", array.run_dir / str(i), array.log_file, array.env) for i in (1, 2, 3)]
    wait_until(lambda: (jobs[1].run_dir / "checkpoints/000000004000").exists(), 120)
    slurm("scontrol", "requeue", jobs[1].id)
    slurm("scancel", "--signal=USR1", jobs[2].id)
    assert [job.wait() for job in jobs] == ["COMPLETED"] * 3, array.log
    assert [job.fact("Restarts") for job in jobs] == ["0", "1", "1"]
    seeds = [json.loads((job.run_dir / "checkpoints/000000060000/state.json").read_text()) for job in jobs]
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
    monkeypatch.setitem(slurm.env, "SBATCH_CONSTRAINT", "pretended")
    job = slurm.submit("--no-requeue --nodes=2 --time=7", *LONG, "tracking.wandb=offline")
    job.wait_for("6.0/32 kimg")
    slurm("scancel", "--signal=USR1", job.id)
    job.wait_for("Submitted batch job")
    assert job.wait() == "COMPLETED"
    follower = Job(re.findall(r"Submitted batch job (\d+)", job.log)[0], job.run_dir, job.log_file, job.env)
    assert follower.wait() == "COMPLETED", job.log
    assert [follower.fact(name) for name in ("NumNodes", "TimeLimit", "Features")] == ["2", "00:07:00", "pretended"]
    assert _last(job.run_dir).name == "000000032000"
    wandb_runs = [path.name.rpartition("-")[2] for path in (job.run_dir / "wandb").glob("offline-run-*")]
    assert wandb_runs == [(job.run_dir / "wandb_id.txt").read_text().split()[0]] * 2


def test_all_checkpoints_are_evaluated_on_all_ranks_once(slurm: Slurm, two_nodes: Job) -> None:
    for _ in range(2):
        log = slurm.folder / "evaluate.log"
        command = f"sbatch --parsable --output={log} --nodes=2 --cpus-per-task=1 slurm/evaluate.sbatch"
        arguments = [str(two_nodes.run_dir), "--n", "100"]
        job = Job(slurm(*command.split(), *arguments).strip(), two_nodes.run_dir, log, slurm.env)
        assert job.wait() == "COMPLETED", job.log
    lines = [json.loads(line) for line in (two_nodes.run_dir / "evaluations.jsonl").read_text().splitlines()]
    assert [line["checkpoint"] for line in lines] == sorted(
        path.name for path in _last(two_nodes.run_dir).parent.iterdir()
    )


def test_accelerate_launch_on_each_node(slurm: Slurm, two_nodes: Job) -> None:
    job = slurm.submit("--nodes=2", *LONG, script="accelerate")
    job.wait_for("6.0/32 kimg")
    slurm("scancel", "--signal=TERM", job.id)
    assert job.wait() == "COMPLETED", job.log
    assert job.fact("Restarts") == "1"
    assert "failed" not in job.log
    assert "2 process(es) on 2 node(s)" in job.log
    assert _weights(job.run_dir) == _weights(two_nodes.run_dir)


def test_time_limit_shorter_than_training(chained: Job) -> None:
    """It finishes by requeues alone."""
    assert chained.wait(240) == "COMPLETED", chained.log
    assert int(chained.fact("Restarts")) >= 1
    assert "the time limit has passed" not in chained.log
    assert _last(chained.run_dir).name == "000000040000"


def test_time_limit_that_passes_without_a_warning(unwarned: Job) -> None:
    assert unwarned.wait() == "COMPLETED", unwarned.log
    assert unwarned.fact("Restarts") == "1"
    assert "the time limit has passed" in unwarned.log
    assert "going on from" in unwarned.log
