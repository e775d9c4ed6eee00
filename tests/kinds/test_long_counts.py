"""Runs that have seen more than 10^12 images."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from forged import forge
from program import Program

from gan_dist.checkpoint import find
from gan_dist.settings import checks


@pytest.mark.slow
@pytest.mark.clause("3.4", "names of 13 digits are not listed: resume goes back, and prune keeps all")
def test_run_goes_on_beyond_twelve_digits(program: Program) -> None:
    words = ["run.dir=run", "checkpoint.every_kimg=0.064", "sample.every_kimg=0", "checkpoint.keep=2"]
    # A busy machine leaves out checkpoints that are due while another is being written, but never the last one.
    assert program.train(*words, "train.kimg=0.128").returncode == 0
    folder = program.cwd / "run/checkpoints"
    for old, new in (("000000000064", "999999999936"), ("000000000128", "1000000000000")):
        (folder / old).rename(folder / new)
        forge(folder / new, nimg=int(new))
    result = program("train", "run.dir=run", "resume=latest", "train.kimg=1000000000.192")
    assert result.returncode == 0, result.stderr
    assert "going on from run/checkpoints/1000000000000" in result.stdout
    assert max(path.name for path in folder.iterdir()) == "1000000000192"
    assert "999999999936" not in {path.name for path in folder.iterdir()}, "two newer ones are kept"
    result = program("train", "run.dir=run", "resume=latest", "train.kimg=1000000000.256", "checkpoint.keep=1")
    assert result.returncode == 0, result.stderr
    assert [path.name for path in folder.iterdir()] == ["1000000000256"]
    shutil.copytree(folder / "1000000000256", folder / "999999999936")
    forge(folder / "999999999936", nimg=999999999936)
    words = ["run.dir=run", "resume=run/checkpoints/999999999936", "train.kimg=1000000000"]
    back = program("train", *words)
    assert back.returncode == 0, back.stderr
    assert "renamed it to aside-1000000000256" in back.stdout


def test_limits_agree(tmp_path: Path) -> None:
    names = ["999999999999", "1000000000000", "1000000000000000", "0000000000001", "99999999999999999", "1" * 11]
    for name in names:
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert [path.name for path in find.list_checkpoints(tmp_path)] == names[:3]
    assert checks._MOST_KIMG * 1000 == find.MAX_NIMG
