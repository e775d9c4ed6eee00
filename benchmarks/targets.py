"""The table of docs/performance.md: what the package should reach, and what it reaches on this machine.

    python -m benchmarks targets data.root=DIR [--rows mlp,dcgan32,…] [--rounds 5] [--json FILE]

`data.root` is where Fashion-MNIST lies. Half an hour on two cores; the machine should have nothing else to do.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import arena, speed, start

CONFIGS = Path(__file__).parent.parent / "configs"
Row = tuple[str, str, str, float, Callable[[list[str], int], tuple[list[float], Any]]]


def over(config: str, own: list[str], names: list[str], images: int, processes: int = 1) -> Callable[..., Any]:
    """A row that compares the package with the last of these contestants, round by round."""

    def measure(settings: list[str], rounds: int) -> tuple[list[float], Any]:
        report = speed.measure(CONFIGS / f"{config}.yaml", [*settings, *own], names, images, rounds, processes)
        return arena.ratios(report["speeds"], "package", names[-1]), report

    return measure


def memory(settings: list[str], rounds: int) -> tuple[list[float], Any]:
    """Peak of the Trainer over that of the bare computation, the data set and the average of G.

    Without a checkpoint; the peak with one, whose copy of the run is written in the background, is in the details.
    """
    settings = [*settings, "data.image_size=64", "checkpoint.every_kimg=2"]
    found = {}
    for entry in speed.entries(["package", "bound"], CONFIGS / "dcgan_fashion_mnist.yaml", settings, 1):
        contestant = arena.Contestant(entry, sorted(os.sched_getaffinity(0)))
        for when in ("before", "after"):
            contestant.ask("run", 1280)
            found[f"{entry.name}, {when} a checkpoint"] = contestant.ask("memory")[1][0]
        contestant.close()
    package, bound = found["package, before a checkpoint"], found["bound, before a checkpoint"]
    data = 60_000 * 64 * 64 / 2**20
    must = bound["peak"] + data + package["average"]
    return [package["peak"] / must - 1], {**found, "data": data, "must": must}


def beginning(settings: list[str], rounds: int) -> tuple[list[float], Any]:
    figures = start.measure([], rounds)
    return [a - b for a, b in zip(figures["as configured"], figures["imports"])], figures


def evaluation(*options: str) -> Callable[[list[str], int], tuple[list[float], Any]]:
    """A row of `benchmarks.evaluation`, in a process of its own."""

    def measure(settings: list[str], rounds: int) -> tuple[list[float], Any]:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "report.json"
            command = [sys.executable, "-m", "benchmarks", "evaluation", *options, *settings, "--json", str(file)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            report = json.loads(file.read_text())
        return report["ratios"], report

    return measure


MLP, DCGAN = "mlp_fashion_mnist", "dcgan_fashion_mnist"
EVENTS = ["checkpoint.every_kimg=10"]  # five times as often as asked for, so that a turn of 10 kimg has one
ROWS: dict[str, Row] = {
    "mlp": ("MLP, batch 64", "images/s over textbook", "≥", 2.0, over(MLP, [], ["package", "textbook"], 25_600)),
    "dcgan32": ("DCGAN, 32 pixels", "images/s over textbook", "≥", 1.3,
                over(DCGAN, ["data.image_size=32"], ["package", "textbook"], 5_120)),
    "dcgan64": ("DCGAN, 64 pixels", "images/s over textbook", "≥", 1.3,
                over(DCGAN, ["data.image_size=64"], ["package", "textbook"], 1_280)),
    "loop_mlp": ("loop efficiency, MLP", "images/s over bound", "≥", 0.95, over(MLP, [], ["package", "bound"], 51_200)),
    "loop_dcgan": ("loop efficiency, DCGAN, 28 pixels", "images/s over bound", "≥", 0.95,
                   over(DCGAN, EVENTS, ["package", "bound"], 10_240)),
    "loop_r3gan": ("loop efficiency, small R3GAN", "images/s over bound", "≥", 0.95,
                   over("r3gan_fashion_mnist", EVENTS, ["package", "bound"], 10_240)),
    "ddp_mlp": ("2 processes, MLP", "images/s over plain Accelerate", "≥", 1.15,
                over(MLP, [], ["package", "accelerate"], 25_600, 2)),
    "ddp_dcgan": ("2 processes, DCGAN, own batch statistics", "images/s over plain Accelerate", "≥", 1.15,
                  over(DCGAN, ["train.sync_batch_norm=false"], ["package", "accelerate"], 5_120, 2)),
    "start": ("start of `python train.py`", "seconds beyond the imports", "≤", 3.0, beginning),
    "memory": ("memory, DCGAN, 64 pixels", "share beyond what must be", "≤", 0.1, memory),
    "fidelity": ("figures of two sets of 5,000 images", "torch-fidelity's time over ours", "≥", 1.2,
                 evaluation("--beside-torch-fidelity", "--rounds", "3")),
    "evaluation": ("evaluation of 5,000 images, Inception", "bare forward passes over all", "≥", 0.9,
                   evaluation("--extractor", "inception")),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", help="data.root=DIR")
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="the report; rows that it has already are not measured again")
    options = parser.parse_intermixed_args()
    report: dict[str, Any] = {"rows": {}}
    if options.json:
        with contextlib.suppress(FileNotFoundError):
            report = json.loads(options.json.read_text())
    for name in options.rows.split(","):
        if name not in report["rows"]:
            values, details = ROWS[name][-1](options.settings, options.rounds)
            report["rows"][name] = {"values": values, "details": details, **arena.machine()}
            arena.write(options.json, {"rows": report["rows"]})
    print("| what | measured as | wanted | measured: median (range) | |\n|---|---|---|---|---|")
    for name, (what, measured_as, sign, least, _) in ROWS.items():
        if name in report["rows"]:
            values = report["rows"][name]["values"]
            middle = statistics.median(values)
            reached = middle >= least if sign == "≥" else middle <= least
            print(f"| {what} | {measured_as} | {sign} {least} | {arena.spread(values)} | {'✓' if reached else '✗'} |")
    print("\n" + ", ".join(arena.machine().values()))


if __name__ == "__main__":
    main()
