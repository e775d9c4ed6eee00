"""How long a checkpoint stops the training loop: with a copy that a thread writes, and with writing in the loop itself.

    python -m benchmarks checkpoint_stall [CONFIG.yaml] [key.sub=value ...] [--rounds 20] [--json FILE]

Each round measures, one after the other: plain iterations; a checkpoint as in training, and the iterations until it is
on disk; a checkpoint that is written in the loop.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path

from gan_dist.checkpoint.write import take_snapshot, write_checkpoint
from gan_dist.cli.arguments import read_config
from gan_dist.data.datasets import describe
from gan_dist.parallel.distributed import Distributed
from gan_dist.wiring.build import build
from gan_dist.wiring.data import source_of

QUIET = ["metrics.every_kimg=0", "sample.every_kimg=0", "tracking.wandb=disabled"]


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_intermixed_args()
    config = read_config([*options.settings, *QUIET])
    dist = Distributed("fp32", cpu=config.train.device == "cpu")
    figures: dict[str, list[float]] = {
        "iteration": [], "copy": [], "iteration while it is written": [], "iterations until it is on disk": [],
        "written in the loop": [],
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        run = build(config, describe(source_of(config.data)), Path(folder), None, dist)
        trainer, save = run.trainer, run.save
        for _ in range(5):
            trainer.step(trainer.batches)
        for _ in range(options.rounds):
            figures["iteration"] += [timed(lambda: trainer.step(trainer.batches)) for _ in range(5)]
            figures["copy"].append(timed(lambda: save(run.state)))
            n = 0
            while save._pending and not save._pending.done():
                figures["iteration while it is written"].append(timed(lambda: trainer.step(trainer.batches)))
                n += 1
            figures["iterations until it is on disk"].append(n)
            save.wait()
            figures["written in the loop"].append(
                timed(lambda: write_checkpoint(Path(folder), take_snapshot(run.state, save.facts), save.config))
            )
        size = sum(file.stat().st_size for file in max((Path(folder) / "checkpoints").iterdir()).iterdir())
    print(f"{date.today()}, {dist.device}, torch {version('torch')}; a checkpoint of {size / 1e6:.1f} MB")
    iteration = statistics.median(figures["iteration"])
    for name, values in figures.items():
        median = statistics.median(values)
        unit = "" if name.startswith("iterations") else f" ms, {median / iteration:.2f} iterations"
        print(f"{name:<34}{median:8.1f}{unit} (range {min(values):.1f}-{max(values):.1f})")
    if options.json:
        options.json.write_text(json.dumps({"settings": options.settings, "ms": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
