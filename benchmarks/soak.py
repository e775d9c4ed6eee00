"""Kill a run many times at random moments, continue it each time, and compare it with a run that was never killed.

    python -m benchmarks soak [--kills 100] [--seed 0] [--processes 1] [--json FILE] [key.sub=value ...]

Each start is `train.py run.dir=DIR resume=auto`; nothing else is done between two starts. Every second kill comes at a
random moment after the start, the others come while a checkpoint is half written.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

from safetensors.torch import load_file

ROOT = Path(__file__).parent.parent
SETTINGS = [
    "train.kimg=600", "train.batch_size=32", "checkpoint.every_kimg=0.5", "checkpoint.keep=3", "log.every_kimg=10",
    "sample.every_kimg=0", "metrics.every_kimg=0", "tracking.wandb=disabled", "train.device=cpu",
    "loss.penalty_interval=4", "optim.G.schedule=cosine", "data.hflip=true",
]  # fmt: skip
TENSORS = ("G", "D", "G_ema", "opt_G", "opt_D")


def start(run_dir: Path, settings: list[str], processes: int, log: Path) -> list[subprocess.Popen[bytes]]:
    """Start the run once; each process has its own process group."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    command = [sys.executable, str(ROOT / "train.py"), *SETTINGS, *settings, f"run.dir={run_dir}", "resume=auto"]
    started = []
    for rank in range(processes):
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        if processes > 1:
            world = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1"}
            env |= {**world, "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)}
        with log.open("ab") as file:
            started.append(subprocess.Popen(command, env=env, stdout=file, stderr=file, start_new_session=True))
    return started


def kill(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def soak(kills: int, seed: int, processes: int, settings: list[str], folder: Path) -> dict[str, object]:
    """Return what happened. Raise SystemExit if a start fails."""
    whole, broken = folder / "whole", folder / "killed"
    if any(process.wait() for process in start(whole, settings, processes, folder / "whole.log")):
        raise SystemExit((folder / "whole.log").read_text())
    draw = random.Random(seed)
    killed = torn = starts = 0
    begun = time.monotonic()
    while True:
        running = start(broken, settings, processes, folder / "killed.log")
        starts += 1
        until = time.monotonic() + draw.uniform(0, 8)
        if killed < kills and killed % 2:  # wait until a checkpoint is half written
            until = time.monotonic() + 60
        while running[0].poll() is None and (killed >= kills or time.monotonic() < until):
            if killed < kills and killed % 2 and list(broken.glob("checkpoints/.tmp-*")):
                break
            time.sleep(0.0005 if killed < kills else 0.1)
        if running[0].poll() is not None:
            statuses = [process.wait() for process in running]
            if any(statuses):
                raise SystemExit(f"start {starts} ended with {statuses}: {(folder / 'killed.log').read_text()[-3000:]}")
            break
        kill(running)
        killed += 1
        torn += bool(list(broken.glob("checkpoints/.tmp-*")))
        if killed % 10 == 0:
            newest = max((path.name for path in broken.glob("checkpoints/0*")), default="none")
            print(f"{killed} kills, {torn} in the middle of writing; newest checkpoint {newest}", flush=True)
    last = max(path.name for path in whole.glob("checkpoints/0*"))
    differ = []
    for name in TENSORS:
        a, b = (load_file(run / "checkpoints" / last / f"{name}.safetensors") for run in (whole, broken))
        if a.keys() != b.keys() or not all((a[key] == b[key]).all() for key in a):
            differ.append(name)
    return {
        "kills": killed, "in the middle of writing": torn, "starts": starts, "processes": processes, "seed": seed,
        "seconds": round(time.monotonic() - begun), "tensors that differ": differ, "images": int(last),
        "enough kills": killed >= kills,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", help="key.sub=value, over those of this test")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as folder:
        result = soak(options.kills, options.seed, options.processes, options.settings, Path(folder))
    result |= {"date": str(date.today()), "torch": version("torch"), "python": platform.python_version()}
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if result["tensors that differ"] or not result["enough kills"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
