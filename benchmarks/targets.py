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


def over_before(config: str, before: float) -> Measure:
    """A row that compares the package's images per second with those of an earlier state of the package."""

    def measure(options: Namespace) -> tuple[list[float], Any]:
        settings = [*options.settings, *TF32]
        report = speed.measure(CONFIGS / f"{config}.yaml", settings, ["package"], 10_240, options.rounds)
        return [found / before for found in report["speeds"]["package"]], report

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

    `must` is the peak of the bare computation plus the data set plus the average of G; and while a checkpoint is
    written, the copy of the state that it is written from.
    """
    found = {}
    for entry in speed.entries(["package", "bound"], CONFIGS / "dcgan_fashion_mnist.yaml", [*settings], 1):
        contestant = arena.Contestant(entry, sorted(os.sched_getaffinity(0)))
        for turn in ("before", "after"):
            contestant.ask("run", 1280)
            found[entry.name, turn] = contestant.ask("memory")[1][0]
        contestant.close()
    data, own = 60_000 * 64 * 64 / 2**20, found["package", "before"]
    parts = {"bound": found["bound", "before"]["peak"], "data": data, "average": own["average"]}
    package = {turn: found["package", turn]["peak"] for turn in ("before", "after")}
    must = {"must before": sum(parts.values()), "must after": sum(parts.values()) + own["copy"]}
    return {**package, **parts, "copy": own["copy"], **must}


def memory(when: str) -> Measure:
    """A row with the peak of the Trainer over the unavoidable memory, `before` its first checkpoint or `after` it.

    While a checkpoint is written, there is also the copy of the run that the background thread writes.
    """

    def measure(options: Namespace) -> tuple[list[float], Any]:
        found = peaks(*options.settings, "data.image_size=64", "checkpoint.every_kimg=2", "train.device=cpu")
        return [found[when] / found[f"must {when}"] - 1], found

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
SNGAN = "sngan_fashion_mnist"
TF32 = ["train.precision=tf32", "checkpoint.every_kimg=0"]
EVENTS = ["checkpoint.every_kimg=10"]  # instead of 50, so that each turn of 10 kimg has a checkpoint
ROWS = {
    "mlp": Row("MLP, batch 64", "images/s over textbook", "≥", 2.0, over(MLP, [], "textbook", 25_600)),
    "dcgan32": Row("DCGAN, 32 pixels", "images/s over textbook", "≥", 1.3,
                   over(DCGAN, ["data.image_size=32"], "textbook", 5_120)),
    "dcgan64": Row("DCGAN, 64 pixels", "images/s over textbook", "≥", 1.3,
                   over(DCGAN, ["data.image_size=64"], "textbook", 1_280)),
    "loop_mlp": Row("loop efficiency, MLP", "images/s over bound", "≥", 0.85, over(MLP, [], "bound", 51_200)),
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
    "gpu_mlp": Row("GPU: MLP, batch 64, tf32", "images/s over textbook in its default precision", "≥", 20,
                   with_gpu(over(MLP, TF32, "textbook", 25_600, device="auto"))),
    "gpu_dcgan": Row("GPU: DCGAN, 28 pixels, tf32", "images/s over textbook in its default precision", "≥", 10,
                     with_gpu(over(DCGAN, TF32, "textbook", 25_600, device="auto"))),
    "gpu_sngan": Row("GPU: SNGAN, batch 64, tf32", "images/s over its bare eager step", "≥", 4,
                     with_gpu(over(SNGAN, TF32, "bound", 25_600, device="auto"))),
    "gpu_r3gan_small": Row("GPU: R3GAN of `r3gan_fashion_mnist`, tf32",
                           "images/s over the 1,620 of an H100 before the work on GPUs", "≥", 5,
                           with_gpu(over_before(R3GAN, 1620))),
    "gpu_loop_mlp": Row("GPU: MLP, tf32", "images/s of the Trainer over the bare iteration as a graph", "≥", 0.85,
                        with_gpu(over(MLP, TF32, "graph", 51_200, device="auto"))),
    "gpu_loop_dcgan": Row("GPU: DCGAN, 28 pixels, tf32", "images/s of the Trainer over the bare iteration as a graph",
                          "≥", 0.95, with_gpu(over(DCGAN, TF32, "graph", 25_600, device="auto"))),
    "gpu_loop_r3gan": Row("GPU: small R3GAN with its schedule, tf32",
                          "images/s of the Trainer over the bare iteration as a graph", "≥", 0.95,
                          with_gpu(over(R3GAN, TF32, "graph", 10_240, device="auto"))),
    "gpu_r3gan": Row("GPU: R3GAN for CIFAR-10, bf16", "images/s over the official steps", "≥", 1.3,
                     with_gpu(official_r3gan)),
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
