"""A run that was stopped and resumed ends with the bits of one that never was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import OF_EACH_ARCHITECTURE, RECIPES, ROOT, start_ranks


@pytest.mark.parametrize("world_size", [1, 2])
def test_every_combination_resumes_exactly(world_size: int, tmp_path: Path) -> None:
    """Recipes, losses, precisions and data workers, stopped by SIGTERM at three places: every file is the same."""
    processes = start_ranks(world_size, [str(ROOT / "tests/resume_worker.py"), str(tmp_path)], tmp_path)
    for process in processes:
        _, error = process.communicate(timeout=600)
        assert process.returncode == 0, error
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results) == len(RECIPES) + 6 * len(OF_EACH_ARCHITECTURE)
    assert {name: files for name, files in results.items() if files} == {}
