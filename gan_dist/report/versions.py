"""What a run was started with: versions, commit, command line and machine. This file does not import torch."""

from __future__ import annotations

import json
import logging
import os
import platform
import shlex
import socket
import subprocess
import sys
import time
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from gan_dist import __version__
from gan_dist.files import open_to_append

log = logging.getLogger(__name__)

LIBRARIES = ("torch", "torchvision", "accelerate", "numpy", "torchmetrics", "torch-fidelity", "safetensors", "wandb")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that decide results, by name. Nothing is imported for it."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


@cache
def package() -> str:
    """Return the package's version, and its commit if it is in a clone, with a note if files differ from the commit."""
    clone = Path(__file__).parent.parent.parent
    if not (clone / ".git").exists():
        return f"gan_dist {__version__}"

    def git(*arguments: str) -> str:
        # Without the two settings, git would start a program for large clones, and write into the clone.
        command = ["git", "-C", str(clone), "-c", "core.fsmonitor=false", *arguments]
        env = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
        return subprocess.run(command, env=env, check=True, capture_output=True, text=True, timeout=10).stdout.strip()

    try:
        changed = " with changes" if git("status", "--porcelain", "--", "gan_dist") else ""
        return f"gan_dist {__version__}, commit {git('rev-parse', 'HEAD')[:12]}{changed}"
    except (OSError, subprocess.SubprocessError):  # there is no git, or it refuses to read somebody else's clone
        return f"gan_dist {__version__}"


def record_start(run_dir: Path, facts: dict[str, Any]) -> None:
    """Log what this start of a run was started with, and add it to `starts.jsonl`, one JSON object per line.

    No variable of the environment is recorded but the number of the SLURM job: others may hold keys.

    Args:
        run_dir: the run directory.
        facts: what else to record: JSON values by name.
    """
    command, found = shlex.join(sys.argv), versions()
    log.info("%s, Python %s, torch %s; started by: %s", package(), found["python"], found["torch"], command)
    job = os.environ.get("SLURM_JOB_ID")
    line = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": command,
        "directory": str(Path.cwd()),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        **({"slurm_job": job} if job else {}),
        "package": package(),
        **found,
        **facts,
    }
    path = run_dir / "starts.jsonl"
    try:
        with open_to_append(path) as file:
            file.write(f"{json.dumps(line)}\n".encode())
    except OSError as error:
        log.warning("%s: cannot be written (%s)", path, error.strerror)
