"""The adapter to Accelerate's private attributes works with the lowest version that is allowed and with the newest."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, start_ranks

pytestmark = pytest.mark.slow

LOWEST = re.search(r'"accelerate>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())[1]  # type: ignore[index]


@pytest.fixture(scope="module")
def lowest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the lowest version."""
    folder = tmp_path_factory.mktemp("accelerate")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    if subprocess.run([*command, f"accelerate=={LOWEST}"], capture_output=True).returncode:
        pytest.skip(f"accelerate {LOWEST} can't be installed: is there no network?")
    return folder


def _check(processes: int, folder: Path, **env: str) -> str:
    fresh = "PYTHONPATH" in env
    ranks = start_ranks(processes, [str(ROOT / "tests/accelerate_worker.py")], folder, fresh=fresh, **env)
    outputs = [rank.communicate(timeout=600) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * processes, outputs
    found = json.loads(outputs[0][0].splitlines()[-1])
    assert found["finished"]
    assert found["stage"] == 2
    assert found["dtypes"] == ["torch.bfloat16", "torch.float32"], "with Accelerate's autocast and without"
    assert (found["loaders"], found["models"]) == (0, 2), "each prepared network is kept once"
    return found["version"]


@pytest.mark.parametrize("processes", [1, 2])
def test_installed_version(processes: int, tmp_path: Path) -> None:
    _check(processes, tmp_path)


@pytest.mark.parametrize("processes", [1, 2])
def test_lowest_version(processes: int, lowest: Path, tmp_path: Path) -> None:
    path = os.pathsep.join([str(lowest), str(ROOT)])
    assert _check(processes, tmp_path, PYTHONPATH=path).startswith(LOWEST)
