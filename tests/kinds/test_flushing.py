"""File systems that cannot flush a directory or a file, as some of FUSE and of Windows shares."""

from __future__ import annotations

import pytest
from program import COMMAND, Program

pytestmark = pytest.mark.slow

RUN = ["train.kimg=0.2", "model.g_widths=[4]", "model.d_widths=[4]", "checkpoint.every_kimg=0.1", "run.dir=run"]

# No file system of this kind can be had here, so the system call is replaced.
FAILING = """
import errno, os, stat
flush = os.fsync
def fsync(descriptor):
    if stat.S_ISDIR(os.fstat(descriptor).st_mode) == (WHAT == "directory"):
        raise OSError(NUMBER, os.strerror(NUMBER))
    flush(descriptor)
os.fsync = fsync
"""


def _failing(monkeypatch: pytest.MonkeyPatch, what: str, number: str) -> None:
    """From now on the flush of a file or of a directory fails in each process that is started."""
    code = FAILING.replace("WHAT", repr(what)).replace("NUMBER", f"errno.{number}")
    monkeypatch.setattr("program.COMMAND", code + COMMAND)


@pytest.mark.clause("2.6", "EINVAL of a directory's flush: no checkpoint at all")
@pytest.mark.parametrize("number", ["EINVAL", "ENOTSUP"])
def test_directory_that_cannot_be_flushed_is_said_once(
    number: str, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    _failing(monkeypatch, "directory", number)
    result = program.process("train", *RUN, "metrics.every_kimg=0", "tracking.wandb=disabled", "train.device=cpu")
    assert result.returncode == 0, result.stdout + result.stderr
    assert len(list((program.cwd / "run/checkpoints").iterdir())) >= 2
    for said in (result.stdout, (program.cwd / "run/log.txt").read_text()):
        assert said.count("run.dir=run: the file system cannot flush directories") == 1


@pytest.mark.clause("2.6", "EINVAL or EIO of a file's flush, EIO of a directory's: found at the first checkpoint")
@pytest.mark.parametrize(("what", "number"), [("file", "EINVAL"), ("file", "EIO"), ("directory", "EIO")])
def test_file_system_that_cannot_keep_files_is_refused_at_the_start(
    what: str, number: str, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    (program.cwd / "run").mkdir()
    _failing(monkeypatch, what, number)
    result = program.process("train", *RUN, "metrics.every_kimg=0", "tracking.wandb=disabled", "train.device=cpu")
    assert result.returncode == 2, result.stdout + result.stderr
    (line,) = result.stderr.splitlines()
    assert "error: run.dir=run: no checkpoint would be safe there (flushing to disk: " in line
    assert not list((program.cwd / "run").iterdir())
