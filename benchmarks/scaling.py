"""Two processes on two cores compared with one process on one core, interleaved in one run.

    python -m benchmarks scaling configs/dcgan_fashion_mnist.yaml data.root=/path [--rounds 5] [--json FILE]

Each contestant is the real `train.py` with the same global batch size, one thread per process, and each process pinned
to its own core. Two independent processes show the limit of the machine itself. The efficiency is the speed of the two
processes over twice that of one process, computed in each round; the table shows medians and ranges.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent
QUIET = [
    "metrics.every_kimg=0", "sample.every_kimg=0", "checkpoint.every_kimg=0", "tracking.wandb=disabled",
    "train.device=cpu",
]  # fmt: skip


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def start(arguments: list[str], cwd: Path, core: int, env: dict[str, str]) -> subprocess.Popen[bytes]:
    """`train.py` pinned to one core, with one thread."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments, *QUIET],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )


def finish(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.wait():
            raise SystemExit("a run failed")


def speed(run_dir: Path) -> float:
    """Images per second, the mean of all logging intervals except the first."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return statistics.mean(line["images_per_sec"] for line in lines[1:])


def one(arguments: list[str], folder: Path, core: int) -> float:
    finish([start([*arguments, "run.dir=one"], folder, core, {})])
    return speed(folder / "one")


def apart(arguments: list[str], folder: Path, cores: list[int]) -> float:
    processes = [start([*arguments, f"run.dir=apart{core}"], folder, core, {}) for core in cores]
    finish(processes)
    return sum(speed(folder / f"apart{core}") for core in cores)


def together(arguments: list[str], folder: Path, cores: list[int]) -> float:
    port = str(free_port())
    processes = []
    for rank, core in enumerate(cores):
        env = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
               "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
        processes.append(start([*arguments, "run.dir=together"], folder, core, env))
    finish(processes)
    return speed(folder / "together")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="+", help="CONFIG.yaml and key.sub=value, as for train.py")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write every figure here")
    options = parser.parse_args()
    settings = [str(Path(text).resolve()) if text.endswith(".yaml") else text for text in options.settings]
    cores = sorted(os.sched_getaffinity(0))[:2]
    unsynced = [*settings, "train.sync_batch_norm=false"]
    rounds: list[dict[str, float]] = []
    for i in range(options.rounds):
        with tempfile.TemporaryDirectory() as temporary:
            figures: dict[str, float] = {}
            # A symmetric order, so that a steady change of the machine's speed cancels out.
            for name in ("one", "together", "apart", "together, batch normalization unsynchronised", "one again"):
                folder = Path(temporary) / name
                folder.mkdir()
                if name.startswith("one"):
                    figures[name] = one(settings, folder, cores[0] if name == "one" else cores[1])
                elif name == "apart":
                    figures[name] = apart(settings, folder, cores)
                else:
                    figures[name] = together(unsynced if "un" in name else settings, folder, cores)
            figures["one"] = (figures["one"] + figures.pop("one again")) / 2
            rounds.append(figures)
            print(f"round {i + 1}: " + "  ".join(f"{k} {v:.0f}" for k, v in figures.items()), flush=True)
    print(f"\n{date.today()}, {platform.processor() or platform.machine()}, Python {platform.python_version()}, "
          f"torch {version('torch')}, accelerate {version('accelerate')}")  # fmt: skip
    print(f"{'images/s of the global batch':<52}{'median':>8}   of twice one process: median (range)")
    for name in rounds[0]:
        ratios = [figures[name] / (2 * figures["one"]) for figures in rounds]
        median = statistics.median(figures[name] for figures in rounds)
        print(f"{name:<52}{median:8.0f}   {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")
    if options.json:
        options.json.write_text(json.dumps({"settings": options.settings, "rounds": rounds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
