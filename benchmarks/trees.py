"""Compare two copies of this repository, for example two commits: both train the same recipes in turns on one CPU core.

    python -m benchmarks trees OLD NEW [--recipes A,B] [--turns 30] [--json FILE] [key.sub=value ...]

`git worktree add --detach OLD COMMIT` makes a copy of a commit. Each copy runs in its own process. A figure is the
processor time of one iteration, because other work on the machine changes it less than the wall time.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from benchmarks import arena

RECIPES = [
    "digits", "grid_rpgan", "grid_wgan_gp",
    *(f"{name}_fashion_mnist" for name in ("mlp", "dcgan", "wgan_gp", "sngan", "pggan", "r3gan")),
]  # fmt: skip
# The program of a copy: for each line of its input, it trains that many iterations and prints the seconds of one.
PROGRAM = """
import sys, tempfile, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from gan_dist.data.datasets import describe
from gan_dist.parallel.distributed import Distributed
from gan_dist.settings.config import load_config
from gan_dist.wiring.build import build
from gan_dist.wiring.data import source_of
config = load_config(Path(sys.argv[1]), sys.argv[2:])
info, dist = describe(source_of(config.data)), Distributed("fp32", cpu=True)
trainer = build(config, info, Path(tempfile.mkdtemp()), None, dist).trainer
for _ in range(2):
    trainer.step(trainer.batches)
print(flush=True)
for line in sys.stdin:
    start = time.process_time()
    for _ in range(int(line)):
        trainer.step(trainer.batches)
    print((time.process_time() - start) / int(line), flush=True)
"""
QUIET = [f"{section}.every_kimg=0" for section in ("log", "sample", "metrics", "checkpoint")]
LAST_STAGE = ["growth.stable_kimg=0", "growth.fade_kimg=0"]


class Copy:
    """One of the two copies, with a recipe ready to be trained."""

    def __init__(self, tree: Path, recipe: str, settings: list[str]) -> None:
        own = [*QUIET, *LAST_STAGE, "tracking.wandb=disabled", *settings]
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tree / f"configs/{recipe}.yaml"), *own], cwd=tree, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(tree)},
        )  # fmt: skip
        self._answer()

    def seconds(self, iterations: int) -> float:
        assert self.process.stdin
        self.process.stdin.write(f"{iterations}\n")
        self.process.stdin.flush()
        return float(self._answer())

    def _answer(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args!r} has ended")
        return line

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def compare(trees: list[Path], recipe: str, turns: int, settings: list[str]) -> list[list[float]]:
    """Seconds per iteration of both copies, one pair for each turn of about a third of a second."""
    copies = [Copy(tree, recipe, settings) for tree in trees]
    try:
        iterations = max(1, round(0.3 / copies[0].seconds(1)))
        pairs = []
        for turn in range(turns):
            found = [copy.seconds(iterations) for copy in (copies if turn % 2 else reversed(copies))]
            pairs.append(found if turn % 2 else found[::-1])
        return pairs
    finally:
        for copy in copies:
            copy.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trees", nargs=2, type=Path, metavar="TREE")
    parser.add_argument("settings", nargs="*", help="key.sub=value")
    parser.add_argument("--recipes", default=",".join(RECIPES))
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--json", type=Path)
    options = parser.parse_intermixed_args()
    trees = [tree.resolve() for tree in options.trees]
    report = {}
    print(f"{'milliseconds an iteration, the least':<40}{'old':>10}{'new':>10}{'old/new':>10}{'median of turns':>26}")
    for recipe in options.recipes.split(","):
        report[recipe] = compare(trees, recipe, options.turns, options.settings)
        old, new = (1000 * min(values) for values in zip(*report[recipe]))
        ratios = arena.spread([a / b for a, b in report[recipe]])
        print(f"{recipe:<40}{old:>10.2f}{new:>10.2f}{old / new:>10.2f}{ratios:>26}", flush=True)
    arena.write(options.json, {"settings": options.settings, "seconds": report})


if __name__ == "__main__":
    main()
