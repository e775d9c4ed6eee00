"""`python tests/golden.py` writes `golden_losses.json`: losses of each recipe's first iterations, computed in fp64.

`test_golden.py` compares with them. A commit that changes the file says why the numbers are other ones.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from conftest import RECIPES, load_recipe
from torch import Tensor

from gan_dist.data.datasets import describe
from gan_dist.parallel.distributed import Distributed
from gan_dist.parallel.signals import StopSignals
from gan_dist.wiring.build import build
from gan_dist.wiring.data import source_of

FILE = Path(__file__).parent / "golden_losses.json"
ITERATIONS = 8


def losses(recipe: str, dist: Distributed, folder: Path) -> list[float]:
    """D's and G's losses in the order in which a short run computes them."""
    config = load_recipe(
        recipe,
        *("train.batch_size=8", "train.precision=fp64", "train.device=cpu", "loss.penalty_interval=3"),
        *("sample.every_kimg=0", "metrics.every_kimg=0", "checkpoint.every_kimg=0", "tracking.wandb=disabled"),
    )
    config.log.every_kimg = 0
    config.train.kimg = ITERATIONS * config.train.batch_size * config.train.n_critic / 1000
    config.growth.batch_sizes = []
    # Initial weights and spectral norms are usually computed in fp32, whose rounding differs between processors.
    torch.set_default_dtype(torch.float64)
    try:
        run = build(config, describe(source_of(config.data)), folder, None, dist)
    finally:
        torch.set_default_dtype(torch.float32)
    found = []

    def add(figures: dict[str, Tensor]) -> None:  # in fp64, before the means are rounded to fp32
        found.extend(value.item() for name, value in figures.items() if name.startswith("loss_"))

    run.trainer.step.stats.add = add  # type: ignore[method-assign]
    run.train(StopSignals())
    return found


def main() -> None:
    torch.set_num_threads(1)
    dist = Distributed("fp64", cpu=True)
    with tempfile.TemporaryDirectory() as folder:
        found = {recipe: losses(recipe, dist, Path(folder)) for recipe in RECIPES}
    rows = ",\n".join(f' "{recipe}": {json.dumps(values)}' for recipe, values in found.items())
    FILE.write_text(f"{{\n{rows}\n}}\n")


if __name__ == "__main__":
    main()
