"""The first table of docs/performance.md: the goals of the package, and what it reaches on this machine.

    python -m benchmarks targets data.root=DIR [--rows mlp,dcgan32,…] [--rounds 5] [--r3gan DIR] [--json FILE]

`data.root` is the directory of Fashion-MNIST, `--r3gan` a clone of the official code (see `benchmarks.peers`). It takes
half an hour on two cores, and nothing else should run on the machine. Rows that this machine cannot measure say what
they need.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import arena, peers, speed, start

CONFIGS = Path(__file__).parent.parent / "configs"
Measure = Callable[[Namespace], tuple[list[float], Any]]


class Row(NamedTuple):
    what: str
    measured_as: str
    sign: str  # whether at least (≥) or at most (≤) `wanted` is needed
    wanted: float
    measure: Measure  # the figure in each round, and the details


class Needs(SystemExit):
    """This machine lacks something that a row needs."""


def over(config: str, own: list[str], other: str, images: int, *, processes: int = 1, device: str = "cpu") -> Measure:
    """A row that compares the package with another contestant, round by round."""

    def measure(options: Namespace) -> tuple[list[float], Any]:
        settings = [*options.settings, *own, f"train.device={device}"]
        names = ["package", other]
        report = speed.measure(CONFIGS / f"{config}.yaml", settings, names, images, options.rounds, processes)
        return arena.ratios(report["speeds"], *names), report

    return measure


def with_gpu(measure: Measure) -> Measure:
    def measure_there(options: Namespace) -> tuple[list[float], Any]:
        if not torch.cuda.is_available():
            raise Needs("needs a GPU")
        return measure(options)

    return measure_there


def official_r3gan(options: Namespace) -> tuple[list[float], Any]:
    if not options.r3gan:
        raise Needs("needs --r3gan DIR, a copy of the official code")
    _, entries, images = peers.r3gan(options.r3gan, options.settings)
    report = peers.compare(entries, images, options.rounds)
    return arena.ratios(report["speeds"], "package", "peer"), report


@functools.cache
def peaks(*settings: str) -> dict[str, float]:
    """Peak MiB of the Trainer before and after its first checkpoint, and the memory that is unavoidable (`must`).

    `must` is the peak of the bare computation plus the data set plus the average of G.
    """
    found = {}
    for entry in speed.entries(["package", "bound"], CONFIGS / "dcgan_fashion_mnist.yaml", [*settings], 1):
        contestant = arena.Contestant(entry, sorted(os.sched_getaffinity(0)))
        for turn in ("before", "after"):
            contestant.ask("run", 1280)
            found[entry.name, turn] = contestant.ask("memory")[1][0]
        contestant.close()
    data, average = 60_000 * 64 * 64 / 2**20, found["package", "before"]["average"]
    parts = {"bound": found["bound", "before"]["peak"], "data": data, "average": average}
    package = {turn: found["package", turn]["peak"] for turn in ("before", "after")}
    return {**package, **parts, "must": sum(parts.values())}


def memory(when: str) -> Measure:
    """A row with the peak of the Trainer over the unavoidable memory, `before` its first checkpoint or `after` it.

    While a checkpoint is written, there is also the copy of the run that the background thread writes.
    """

    def measure(options: Namespace) -> tuple[list[float], Any]:
        found = peaks(*options.settings, "data.image_size=64", "checkpoint.every_kimg=2", "train.device=cpu")
        return [found[when] / found["must"] - 1], found

    return measure


def beginning(options: Namespace) -> tuple[list[float], Any]:
    figures = start.measure([], options.rounds)
    return [a - b for a, b in zip(figures["as configured"], figures["imports"])], figures


def evaluation(*flags: str, most: int) -> Measure:
    """A row of `benchmarks.evaluation`, in its own process. It has at most `most` rounds, because they are long."""

    def measure(options: Namespace) -> tuple[list[float], Any]:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "report.json"
            command = [sys.executable, "-m", "benchmarks", "evaluation", "--rounds", str(min(most, options.rounds)),
                       *flags, *options.settings, "--json", str(file)]  # fmt: skip
            if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
                raise SystemExit("the evaluation failed")
            report = json.loads(file.read_text())
        return report["ratios"], report

    return measure


MLP, DCGAN, R3GAN = "mlp_fashion_mnist", "dcgan_fashion_mnist", "r3gan_fashion_mnist"
EVENTS = ["checkpoint.every_kimg=10"]  # instead of 50, so that each turn of 10 kimg has a checkpoint
ROWS = {
    "mlp": Row("MLP, batch 64", "images/s over textbook", "≥", 2.0, over(MLP, [], "textbook", 25_600)),
    "dcgan32": Row("DCGAN, 32 pixels", "images/s over textbook", "≥", 1.3,
                   over(DCGAN, ["data.image_size=32"], "textbook", 5_120)),
    "dcgan64": Row("DCGAN, 64 pixels", "images/s over textbook", "≥", 1.3,
                   over(DCGAN, ["data.image_size=64"], "textbook", 1_280)),
    "loop_mlp": Row("loop efficiency, MLP", "images/s over bound", "≥", 0.95, over(MLP, [], "bound", 51_200)),
    "loop_dcgan": Row("loop efficiency, DCGAN, 28 pixels", "images/s over bound", "≥", 0.95,
                      over(DCGAN, EVENTS, "bound", 10_240)),
    "loop_r3gan": Row("loop efficiency, small R3GAN", "images/s over bound", "≥", 0.95,
                      over(R3GAN, EVENTS, "bound", 10_240)),
    "ddp_mlp": Row("2 processes, MLP", "images/s over plain Accelerate", "≥", 1.15,
                   over(MLP, [], "accelerate", 25_600, processes=2)),
    "ddp_dcgan": Row("2 processes, DCGAN, own batch statistics", "images/s over plain Accelerate", "≥", 1.15,
                     over(DCGAN, ["train.sync_batch_norm=false"], "accelerate", 5_120, processes=2)),
    "start": Row("start of `python train.py`", "seconds beyond the imports", "≤", 3.0, beginning),
    "memory": Row("memory, DCGAN, 64 pixels", "share beyond what must be", "≤", 0.1, memory("before")),
    "memory_checkpoint": Row("the same while a checkpoint is written", "share beyond what must be", "≤", 0.1,
                             memory("after")),
    "fidelity": Row("figures of two sets of 5,000 images", "torch-fidelity's time over ours", "≥", 1.2,
                    evaluation("--beside-torch-fidelity", most=3)),
    "evaluation": Row("evaluation of 5,000 images, Inception", "bare forward passes over all", "≥", 0.9,
                      evaluation("--extractor", "inception", most=1)),
    "gpu_mlp": Row("GPU: MLP, batch 64", "images/s over textbook", "≥", 10,
                   with_gpu(over(MLP, [], "textbook", 10_240, device="auto"))),
    "gpu_dcgan": Row("GPU: DCGAN, 28 pixels", "images/s over textbook", "≥", 10,
                     with_gpu(over(DCGAN, [], "textbook", 10_240, device="auto"))),
    "gpu_r3gan": Row("GPU: R3GAN for CIFAR-10, bf16", "images/s over the official steps", "≥", 1.3,
                     with_gpu(official_r3gan)),
    "gpu_loop": Row("GPU: loop efficiency, small R3GAN", "images/s over bound", "≥", 0.97,
                    with_gpu(over(R3GAN, EVENTS, "bound", 10_240, device="auto"))),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", help="data.root=DIR")
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="the report; rows that it has already are not measured again")
    parser.add_argument("--r3gan", type=Path, help="a clone of the official R3GAN, for its row")
    options = parser.parse_intermixed_args()
    measured: dict[str, Any] = {}
    if options.json:
        with contextlib.suppress(FileNotFoundError):
            measured = json.loads(options.json.read_text())["rows"]
    lacking, failed = {}, False
    for name in options.rows.split(","):
        if name in measured:
            continue
        try:
            values, details = ROWS[name].measure(options)
        except SystemExit as why:  # if a row fails, the others are still measured
            lacking[name] = str(why)
            failed |= not isinstance(why, Needs)
            continue
        measured[name] = {"values": values, "details": details, **arena.machine()}
        arena.write(options.json, {"rows": measured})
    print("| what | measured as | wanted | measured: median (range) | |\n|---|---|---|---|---|")
    for name, row in ROWS.items():
        found, mark = lacking.get(name), ""
        if name in measured:
            values = measured[name]["values"]
            middle = statistics.median(values)
            reached = middle >= row.wanted if row.sign == "≥" else middle <= row.wanted
            found, mark = arena.spread(values), "✓" if reached else "✗"
        if found:
            print(f"| {row.what} | {row.measured_as} | {row.sign} {row.wanted} | {found} | {mark} |")
    of = arena.machine().keys()
    machines = {", ".join(row[key] for key in of if key in row) for row in measured.values()}
    print("\n" + "\n".join(sorted(machines)))
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
