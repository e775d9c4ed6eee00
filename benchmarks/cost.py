"""How time and memory grow with the batch, the image, the data set and the number of processes.

    python -m benchmarks cost [--images 1024] [--rounds 3] [--json FILE] [key.sub=value …]

It trains DCGAN on Fashion-MNIST (give `data.root=…` among the settings), resized as needed. The table of data set sizes
uses folders of small pictures. Each row is one run of the complete Trainer in its own processes; the rows of a table
take turns. The table of processes also has what `gan-dist plan` expects, computed from the rates of one core.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import arena
from benchmarks.arena import Contestant, Entry
from benchmarks.contestants import configured
from gan_dist.planning import plan
from gan_dist.planning.counts import counter_of

ROOT = Path(__file__).parent.parent
CONFIG = str(ROOT / "configs/dcgan_fashion_mnist.yaml")
PROCESSES = ["train.batch_size=128"]
QUIET = ["log.every_kimg=1000", "sample.every_kimg=0", "checkpoint.every_kimg=0"]


def rows(name: str, settings: list[str], folder: Path) -> list[Entry]:
    """The contestants of one table."""

    def entry(label: str, *own: str, processes: int = 1) -> Entry:
        arguments = {"config": CONFIG, "settings": [*QUIET, *settings, *own]}
        return Entry(label, "benchmarks.contestants:Package", arguments, processes)

    if name == "batch":
        return [entry(f"{n}", f"train.batch_size={n}") for n in (16, 32, 64, 128)]
    if name == "image":
        return [entry(f"{n}x{n}", f"data.image_size={n}", "train.batch_size=32") for n in (16, 32, 64)]
    if name == "processes":
        return [entry(f"{n}", *PROCESSES, processes=n) for n in (1, 2)]
    made = []
    for n in (500, 2000, 8000):
        root = folder / str(n)
        root.mkdir()
        pictures = np.random.default_rng(0).integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)
        for i, picture in enumerate(pictures):
            Image.fromarray(picture).save(root / f"{i:05d}.png", compress_level=1)
        own = ("data.name=folder", f"data.root={root}", "data.image_size=16")
        made.append(entry(f"{n}", *own))
    return made


def measure(name: str, settings: list[str], images: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Speeds, seconds to start and MiB of one table's rows."""
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        # One core for each process; all tables except that of processes use one process.
        contestants = [
            Contestant(entry, cores[: max(1, entry.processes)]) for entry in rows(name, settings, Path(folder))
        ]
        found: dict[str, dict[str, Any]] = {c.name: {"start": c.ask("losses", 1)[0]} for c in contestants}
        speeds = arena.take_turns(contestants, images, rounds)
        for contestant in contestants:
            memory = contestant.ask("memory")[1]
            found[contestant.name] |= {
                "images_per_sec": speeds[contestant.name], "MiB": max(part["peak"] for part in memory)
            }  # fmt: skip
            contestant.close()
    return found


def planned(settings: list[str], labels: list[str]) -> dict[str, float]:
    """Images/s that `gan-dist plan` expects for these numbers of processes, with one core each."""
    config, info = configured(CONFIG, [*settings, *PROCESSES])
    torch.set_num_threads(1)
    rates = plan.measured_rates()
    count = counter_of(config, info)
    rows = {n: plan.plan(config, info, int(n), rates, count) for n in labels}
    return {n: 1000 / row.seconds_per_kimg(config.train.batch_size) for n, row in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", help="key.sub=value")
    parser.add_argument("--tables", default="batch,image,data,processes")
    parser.add_argument("--images", type=int, default=1024, help="images per turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_intermixed_args()
    report = {}
    for name in options.tables.split(","):
        report[name] = measure(name, options.settings, options.images, options.rounds)
        print(f"\n| {name} | images/s | ms an image | MiB of a process |\n|---|---|---|---|")
        for label, row in report[name].items():
            speed = statistics.median(row["images_per_sec"])
            print(f"| {label} | {arena.spread(row['images_per_sec'], 0)} | {1000 / speed:.3f} | {row['MiB']:.0f} |")
        if name == "processes":
            for label, expected in planned(options.settings, list(report[name])).items():
                report[name][label]["planned"] = expected
                speed = statistics.median(report[name][label]["images_per_sec"])
                print(f"plan for {label}: {expected:.0f} images/s, {expected / speed:.2f} times what was measured")
    arena.write(options.json, {"settings": options.settings, "tables": report})


if __name__ == "__main__":
    main()
