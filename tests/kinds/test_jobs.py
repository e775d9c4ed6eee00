"""Job scripts that go on without end, give up too soon, or cannot say why. SLURM's programs are stubs here."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT
from program import TREE

pytestmark = pytest.mark.slow
HERE = Path(TREE or ROOT)
as_root = pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root")

STUBS = {
    "squeue": 'cat "$STUBS/queue"',
    "srun": 'printf "%s\\n" "$@" >"$STUBS/arguments"; source "$STUBS/rank"',
    "sbatch": 'printf "%s\\n" "$@" >"$STUBS/submitted"',
    "scontrol": """case "$*" in
        "show hostnames"*) echo localhost ;;
        "show job"*) cat "$STUBS/job" ;;
        requeue*) [[ ! -e $STUBS/norequeue ]] && touch "$STUBS/requeued" ;;
    esac""",
}


class Job:
    """A job that starts again and again as long as its script asks for it.

    Attributes:
        run_dir: the run directory.
        restarts: how often SLURM has requeued the job.
        log: what the last start has printed.
    """

    def __init__(self, folder: Path, script: str = "train", around: str = "") -> None:
        self.folder, self.run_dir, self.script, self.around = folder, folder / "run", script, around
        self.restarts, self.log = 0, ""
        (folder / "bin").mkdir()
        for name, body in STUBS.items():
            (folder / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
            (folder / "bin" / name).chmod(0o755)
        self.queue("RUNNING 20:00:00 1:00")
        self.ranks("exit 1")
        (folder / "job").write_text("   StdOut=/logs/a.log\n")

    def queue(self, line: str) -> None:
        """What squeue prints: the job's state, the time that it has left, and the time that it has used."""
        (self.folder / "queue").write_text(line + "\n")

    def ranks(self, body: str) -> None:
        """What srun does."""
        (self.folder / "rank").write_text(body + "\n")

    def start(self, *settings: str, cwd: Path = HERE, **env: str) -> int:
        """Start the script once; returns its exit status."""
        (self.folder / "requeued").unlink(missing_ok=True)
        slurm = {
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NAME": "try",
            "SLURM_JOB_NODELIST": "localhost",
            "SLURM_NNODES": "1",
            "SLURM_CPUS_ON_NODE": "1",
            "SLURM_RESTART_COUNT": str(self.restarts),
        }
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        command = f'{self.around} exec bash "$@"'
        result = subprocess.run(
            ["unshare", "-m"] * bool(self.around)
            + ["bash", "-c", command, "job", str(HERE / f"slurm/{self.script}.sbatch"), "configs/digits.yaml"]
            + [*settings, f"run.dir={self.run_dir}"],
            cwd=cwd,
            env={**os.environ, "PATH": path, "STUBS": str(self.folder), **slurm, **env},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        self.log = result.stdout + result.stderr
        return result.returncode

    def starts(self, most: int = 30) -> int:
        """How often the job starts before it ends for good; at most so many times."""
        for number in range(1, most + 1):
            self.start()
            if not (self.folder / "requeued").exists():
                return number
            self.restarts += 1
        return most


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


@pytest.mark.clause("2.4", "a run directory that can't be written: requeued without end")
def test_unwritable_run_directory_ends_the_job(job: Job) -> None:
    job.run_dir = Path("/proc/run")  # where not even root can make a directory
    assert job.starts() == 3
    assert "gave up: 3 starts from the beginning" in job.log
    assert "/proc/run/.starts cannot be written" in job.log


@as_root
@pytest.mark.clause("2.4", "a full disk: requeued without end")
def test_full_disk_ends_the_job(tmp_path: Path) -> None:
    """Each start gets an own disk of a few pages, which is full; so nothing but SLURM counts the starts."""
    (tmp_path / "run").mkdir()
    mount = f"mount -t tmpfs -o size=16k none {tmp_path}/run; cat /dev/zero >{tmp_path}/run/full 2>/dev/null;"
    job = Job(tmp_path, around=mount)
    assert job.starts() == 3
    assert "gave up: 3 starts" in job.log


@pytest.mark.clause("2.4", "where .starts can't be written and requeueing is off, job follows job without end")
def test_jobs_that_follow_each_other_are_counted_too(job: Job) -> None:
    job.run_dir = Path("/proc/run")
    (job.folder / "norequeue").touch()
    job.ranks('echo "$GAN_DIST_RESTARTS" >"$STUBS/count"; exit 1')
    assert job.start(GAN_DIST_RESTARTS="1") == 0  # it has submitted another job
    assert job.start(GAN_DIST_RESTARTS="2") == 1
    assert "gave up" in job.log


@pytest.mark.clause("2.4", "a stop signal during start-up: 75 at 0.0 kimg each time, without end")
@pytest.mark.parametrize("queue", ["RUNNING 4:30 0:40", "RUNNING 11:50 1-02:00:00", "COMPLETING 0:00 5:00"])
def test_time_limit_that_comes_before_a_checkpoint_counts_as_a_crash(queue: str, job: Job) -> None:
    job.queue(queue)
    job.ranks("exit 75")
    assert job.starts() == 3
    assert "use a longer --time" in job.log


@pytest.mark.clause("2.4", "preempted again and again without progress, without end")
@pytest.mark.parametrize("shown", ["", "   PreemptEligibleTime=2026-11-27T02:02:21 PreemptTime=2026-11-27T02:02:21\n"])
def test_preempted_job_goes_on_twenty_times(shown: str, job: Job) -> None:
    """With a PreemptTime, the time that is left is that of the partition's GraceTime."""
    (job.folder / "job").write_text(shown)
    job.queue("RUNNING 1:00 0:40" if shown else "RUNNING 20:00:00 1:00")
    job.ranks("exit 75")
    assert job.starts() == 20
    assert "gave up: 20 starts from the beginning" in job.log


@pytest.mark.clause("2.4", "three preemptions in start-up end the job: the shell is killed before it can count them")
def test_preemption_that_kills_the_shell_is_no_crash(job: Job) -> None:
    job.queue("COMPLETING 20:00:00 1:00")
    # SLURM's TERM, and 30 s later, while the ranks still import torch, its KILL; here at once when the stop is noted
    job.ranks(f"""kill -TERM $PPID
        for ((i = 0; i < 100; i++)); do
          [[ $(grep -cs stopped "{job.run_dir}/.starts") == $(grep -cs job "{job.run_dir}/.starts") ]] && break
          read -rt 0.1 <> <(:)
        done
        kill -KILL $PPID""")
    for _ in range(4):
        assert job.start() == -9, job.log
    job.queue("RUNNING 20:00:00 1:00")
    job.ranks("exit 1")
    assert job.starts() == 3  # these are crashes


@pytest.mark.clause("2.4", "a start that reached a new checkpoint and then failed counts as one that did not")
def test_start_that_makes_progress_never_counts(job: Job) -> None:
    job.ranks(f'mkdir -p "{job.run_dir}/checkpoints/$(printf %012d $SLURM_RESTART_COUNT)"; exit $STATUS')
    for i in range(6):
        job.restarts = i
        assert job.start(STATUS="75" if i % 3 else "1") == 0, job.log
        assert (job.folder / "requeued").exists()
    (job.run_dir / "checkpoints/000000000009").mkdir()
    job.ranks("exit 1")
    for _ in range(2):
        assert job.start() == 0
    job.ranks(f'mkdir -p "{job.run_dir}/checkpoints/1000000000000"; exit 1')
    assert job.start() == 0
    assert "failed with exit status 1" in job.log


@pytest.mark.clause("2.4", "locks of ports stay in /tmp")
def test_nothing_is_left_in_tmp(job: Job) -> None:
    before = set(Path("/tmp").glob("gan_dist-port-*"))
    job.ranks('echo "$MASTER_PORT" >>"$STUBS/ports"; exit 0')
    for number in ("7", "8"):
        assert job.start(SLURM_JOB_ID=number) == 0
    assert set(Path("/tmp").glob("gan_dist-port-*")) == before
    ports = (job.folder / "ports").read_text().split()
    assert ports[0] != ports[1]


@pytest.mark.clause("2.4", "a log path with = is cut")
def test_following_job_keeps_the_path_of_the_log(job: Job) -> None:
    (job.folder / "norequeue").touch()
    (job.folder / "job").write_text("   StdIn=/dev/null\n   StdOut=/logs/lr=1e-4 b=2/x.log\n   Power=\n")
    assert job.start() == 0
    assert "--output=/logs/lr=1e-4 b=2/x.log\n" in (job.folder / "submitted").read_text()


@pytest.mark.clause("2.4", "without slurm/logs a job ends without a word")
@pytest.mark.parametrize("script", ["train", "sweep", "evaluate", "accelerate"])
def test_job_that_was_submitted_elsewhere_says_so(script: str, tmp_path: Path) -> None:
    """SLURM does not start a job whose log cannot be opened, so the log is in the directory of the submission."""
    job = Job(tmp_path, script)
    text = (HERE / f"slurm/{script}.sbatch").read_text()
    (log,) = [line.partition("--output=")[2] for line in text.splitlines() if "#SBATCH --output=" in line]
    assert (tmp_path / log).parent.is_dir()
    assert job.start(cwd=tmp_path) == 2
    assert f"{tmp_path} is not the top of the clone: submit this job from there" in job.log


@pytest.mark.clause("2.4", "quotes, comments, blank lines and spaces in a sweep file")
def test_sweep_file_is_read_as_a_shell_would(tmp_path: Path) -> None:
    job = Job(tmp_path, "sweep")
    sweep = tmp_path / "a sweep.txt"
    sweep.write_text(
        "# learning rates\n"
        "\n"
        "  optim.G.lr=1e-4   # the usual one\n"
        "run.name=a#1 'data.root=/my data/#1' model.g_args=\"{blocks: 1, x: '2'}\" \\\n  train.seed=3\n"
        "\t\n"
        "data.root=$(touch executed)`touch executed`$HOME/*\r\n"
        "data.root='open\n"
    )
    job.ranks("exit 0")

    def settings(number: int) -> list[str]:
        array = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": str(number)}
        if job.start(f"settings={sweep}", **array):
            return []
        given = (tmp_path / "arguments").read_text().splitlines()
        return given[given.index("configs/digits.yaml") + 2 : -1]  # after the user's run.dir, before the script's own

    sweep.write_text(sweep.read_text().replace("data.root='open\n", ""))
    assert settings(1) == ["optim.G.lr=1e-4"]
    assert settings(2) == ["run.name=a#1", "data.root=/my data/#1", "model.g_args={blocks: 1, x: '2'}", "train.seed=3"]
    assert settings(3) == ["data.root=$(touch", "executed)`touch", "executed`$HOME/*"]
    assert settings(4) == []
    assert f"{sweep} has no line 4" in job.log
    sweep.write_text("train.seed=1\ndata.root='open\n")
    assert settings(1) == []
    assert f"{sweep}: line 2: ' is not closed" in job.log
    assert not (HERE / "executed").exists()
