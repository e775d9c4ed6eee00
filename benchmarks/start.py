"""Seconds from `python train.py` to the end of the first iteration, and seconds to import torch and accelerate.

    python -m benchmarks start [CONFIG.yaml] [key.sub=value …] [--rounds 5] [--json FILE]

The run logs its first iteration, and the time ends when this line is in `metrics.jsonl`. A program that only imports
the two libraries takes turns with it. A run before the first round caches the data and what the metrics need.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import arena
from gan_dist.cli.arguments import read_config

ROOT = Path(__file__).parent.parent


def imports() -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch, accelerate"], check=True)
    return time.perf_counter() - start


def first_iteration(arguments: list[str]) -> float:
    """Seconds until the first line with training figures is written."""
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "run/metrics.jsonl"
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *arguments, f"run.dir={folder}/run", "tracking.wandb=disabled"],
            stdout=subprocess.DEVNULL,
        )
        while not (figures.exists() and "loss_D" in figures.read_text()):
            if process.poll():
                raise SystemExit(f"train.py {' '.join(arguments)}: status {process.returncode}")
            time.sleep(0.005)
        seconds = time.perf_counter() - start
        process.kill()
        process.wait()
    return seconds


def measure(settings: list[str], rounds: int) -> dict[str, list[float]]:
    arguments = [*settings, f"log.every_kimg={read_config(settings).train.batch_size / 1000}"]
    figures: dict[str, list[float]] = {"imports": [], "as configured": [], "no evaluation at the start": []}
    first_iteration(arguments)
    for _ in range(rounds):
        figures["imports"].append(imports())
        figures["as configured"].append(first_iteration(arguments))
        figures["no evaluation at the start"].append(first_iteration([*arguments, "metrics.every_kimg=0"]))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_intermixed_args()
    figures = measure(options.settings, options.rounds)
    base = figures["imports"]
    for name, values in figures.items():
        beyond = [a - b for a, b in zip(values, base)]
        print(f"{name:<30}{statistics.median(values):6.2f} s; beyond the imports {arena.spread(beyond)} s")
    arena.write(options.json, {"settings": options.settings, "seconds": figures})


if __name__ == "__main__":
    main()
