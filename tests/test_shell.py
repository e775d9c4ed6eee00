"""The shell scripts."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from conftest import ROOT


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs shellcheck: apt-get install shellcheck")
def test_shell_scripts_pass_shellcheck() -> None:
    scripts = [path for folder in ("slurm", "launch") for path in (ROOT / folder).iterdir()]
    scripts = [path for path in scripts if path.suffix in (".sh", ".sbatch")]
    assert len(scripts) >= 5
    result = subprocess.run(
        ["shellcheck", "-x", *map(str, scripts), ".ci/run"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout
