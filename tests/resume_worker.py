"""What `test_resume.py` runs in 1 and 2 processes: `resume_worker.py FOLDER`, with a launcher's variables.

Trains each combination once without a stop and once with two, by the program's own parts, and compares every file of
the last checkpoint. Rank 0 leaves `FOLDER/results.json`: combination -> names of the files that differ.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import torch
from conftest import DISTINCT, OF_EACH_ARCHITECTURE, load_recipe, make_images, recipe_file

from gan_dist.checkpoint.find import FILES, find_checkpoint
from gan_dist.data.datasets import describe
from gan_dist.data.points import POINTS
from gan_dist.game.losses import LOSSES
from gan_dist.parallel.accelerate_adapter import forget_state
from gan_dist.parallel.distributed import Distributed
from gan_dist.parallel.signals import StopSignals
from gan_dist.parallel.stop import STOP_LAG
from gan_dist.settings.schema import Config
from gan_dist.wiring.build import build
from gan_dist.wiring.data import source_of

# Every recipe that differs in more than data, sizes and rates, in fp32 with its own loss; and every architecture in
# every precision with another loss each time, in one of them with data workers.
SETTINGS = [("fp64", 0), ("fp32", 2), ("bf16", 0)]
CHANGED = [
    (precision, recipe, workers, list(LOSSES)[(i + 2 * j) % len(LOSSES)])
    for j, (precision, workers) in enumerate(SETTINGS)
    for i, recipe in enumerate(OF_EACH_ARCHITECTURE.values())
]
# Two processes: where their number matters to what a checkpoint has to keep.
IN_TWO = ["dcgan_fashion_mnist", "digits_augment", "pggan_fashion_mnist", "ring_rpgan", "sngan_projection_cifar10"]
IN_TWO += ["wgan_gp_fashion_mnist"]
# Each architecture once, in one precision after the other: a precision saves the same in two processes as in one.
CHANGED_IN_TWO = [CHANGED[i] for i in (0, 6, 8, 12, 14)]
BATCH_SIZE, STOPS, BETWEEN = 8, 2, 5
ITERATIONS = STOPS * BETWEEN + 1  # in groups of three between penalties, and almost four to an epoch
COMMON = [
    f"train.batch_size={BATCH_SIZE}", "log.every_kimg=0.016",
    "sample.every_kimg=0", "metrics.every_kimg=0", "checkpoint.every_kimg=1", "tracking.wandb=disabled",
    "loss.penalty_interval=3", "optim.G.schedule=cosine", "optim.D.warmup_kimg=0.05", "data.memory_gib=1e-9",
]  # fmt: skip


def train(run_dir: Path, config: Config, dist: Distributed, *, stop: bool) -> None:
    """From the newest checkpoint, if there is one, to the end or for BETWEEN iterations."""
    # The second stage of a growing network takes batches twice as large, and the last one is to be seen too.
    longer = 10 if config.growth.stable_kimg else 0
    config.train.kimg = BATCH_SIZE * config.train.n_critic * (ITERATIONS + longer) / 1000
    if dist.is_main:
        run_dir.mkdir(exist_ok=True)
    dist.barrier()
    checkpoint = dist.from_main(lambda: find_checkpoint(run_dir) if (run_dir / "checkpoints").exists() else None)
    run = build(config, describe(source_of(config.data)), run_dir, checkpoint, dist)
    with StopSignals() as signals:
        step = run.trainer.step
        take = type(step).__call__
        signal_at = BETWEEN - (STOP_LAG if dist.several else 0)
        taken = 0

        class Interrupted(type(step)):  # type: ignore[misc]
            def __call__(self, batches):  # type: ignore[no-untyped-def]
                nonlocal taken
                norms = take(self, batches)
                taken += 1
                if stop and taken == signal_at and dist.rank == dist.world_size - 1:  # one tells the others
                    os.kill(os.getpid(), signal.SIGTERM)
                return norms

        step.__class__ = Interrupted
        finished = run.train(signals)
    assert finished != stop
    assert taken == BETWEEN or finished
    dist.barrier()


def main() -> None:
    folder = Path(sys.argv[1])
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    results: dict[str, list[str]] = {}
    previous = ""
    recipes, changed = (DISTINCT, CHANGED) if world_size == 1 else (IN_TWO, CHANGED_IN_TWO)
    for precision, recipe, workers, loss in [("fp32", recipe, 0, "") for recipe in recipes] + changed:
        if precision != previous:
            forget_state()
            dist = Distributed(precision, cpu=True)
            previous = precision
        if dist.is_main and not (folder / "images").exists():
            make_images(folder / "images")
        dist.barrier()
        settings = [
            *COMMON,
            f"data.workers={workers}",
            f"train.precision={precision}",
            # Two in each step; D of PGGAN compares groups of 4 images, which stay whole.
            f"train.micro_batch_size={4 if 'pggan' in recipe else BATCH_SIZE // world_size // 2}",
        ]
        if recipe_file(recipe).data.name not in POINTS:
            settings += [
                f"data.root={folder / 'images'}",
                "data.name=folder",
                "data.class_folders=true",
                "data.hflip=true",
            ]
        if loss:
            settings += [f"loss.name={loss}", "loss.clip_weights=0.5"]
        config = load_recipe(recipe, *settings)
        whole, parts = folder / "whole", folder / "parts"
        train(whole, config, dist, stop=False)
        for part in range(STOPS + 1):
            train(parts, config, dist, stop=part < STOPS)
        if dist.is_main:
            last = max((whole / "checkpoints").iterdir()).relative_to(whole)
            name = f"{recipe} {loss} {precision} {world_size} processes {workers} workers"
            results[name] = [f for f in FILES if (whole / last / f).read_bytes() != (parts / last / f).read_bytes()]
            shutil.rmtree(whole)
            shutil.rmtree(parts)
    if dist.is_main:
        (folder / "results.json").write_text(json.dumps(results))
    torch.distributed.barrier() if world_size > 1 else None
    dist.end()


if __name__ == "__main__":
    main()
