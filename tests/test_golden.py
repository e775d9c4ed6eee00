"""The losses of each recipe's first iterations are what they were when `golden_losses.json` was written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import RECIPES
from golden import FILE, ITERATIONS, losses

from gan_dist.parallel.distributed import Distributed


@pytest.fixture(scope="module")
def dist() -> Distributed:
    return Distributed("fp64", cpu=True)


@pytest.mark.parametrize("recipe", RECIPES)
def test_losses(recipe: str, dist: Distributed, tmp_path: Path) -> None:
    """fp64 on one thread: other processors and libraries differ by less than 1e-9 of a loss."""
    found, golden = losses(recipe, dist, tmp_path), json.loads(FILE.read_text())[recipe]
    assert len(found) >= 2 * ITERATIONS
    assert found == pytest.approx(golden, rel=1e-9, abs=1e-12)
