"""Jobs on the SLURM of `slurm_cluster.py`, for the tests of the job scripts."""

from __future__ import annotations

import re
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT, TINY
from slurm_cluster import wait_until

CONFIG = str(ROOT / "configs/digits.yaml")
LONG = ["train.kimg=20", "checkpoint.every_kimg=2", "checkpoint.keep=0"]  # some 5 seconds, time enough to interrupt
ENDED = {"COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL"}


@dataclass
class Job:
    """A submitted job."""

    id: str
    run_dir: Path
    log_file: Path
    env: dict[str, str]

    def fact(self, name: str) -> str:
        shown = run(["scontrol", "show", "job", self.id], self.env)
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
        mark = {"SLURM_JOB_ID": self.id, "SLURM_CONF": self.env["SLURM_CONF"]}  # two clusters have the same numbers
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                env = dict(item.partition("=")[::2] for item in path.read_text(errors="replace").split("\0"))
                if env.items() >= mark.items() and "RANK" in env:
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
        job = run([*command, f"slurm/{script}.sbatch", CONFIG, *settings], self.env).strip()
        return Job(job, run_dir, log_file, self.env)

    def __call__(self, *command: str) -> str:
        return run(list(command), self.env)


def run(command: list[str], env: dict[str, str]) -> str:
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, f"{command}: {result.stderr}"
    return result.stdout


def last_checkpoint(run_dir: Path) -> Path:
    return max((run_dir / "checkpoints").iterdir())


def weights(run_dir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in last_checkpoint(run_dir).glob("*.safetensors")}
