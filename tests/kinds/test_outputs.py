"""Standard output, standard error and log.txt may fail, and names that are printed may hold anything."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest
from conftest import TINY
from PIL import Image
from program import Program

SHORT = [*TINY, "train.kimg=1", "log.every_kimg=0.1", "run.dir=run", "sample.every_kimg=0"]
CLOSED = "import os, sys; os.close({0}); sys.{1} = None"
FULL = "import os; os.dup2(os.open('/dev/full', os.O_WRONLY), 1)"
ASCII = "import sys; sys.stdout.reconfigure(encoding='ascii', errors='strict')"
HOSTILE = "\x1b[2Jgrün\u202e.png"


def _pictures(folder: Path) -> None:
    """40 good pictures, and two that cannot be read: one name would clear a terminal, the other is not UTF-8."""
    folder.mkdir()
    for i in range(40):
        Image.new("L", (8, 8), i).save(folder / f"{i}.png")
    (folder / HOSTILE).touch()
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png")).touch()


def _saved(program: Program) -> bool:
    return (program.cwd / "run/checkpoints/000000001024/manifest.json").exists()


@pytest.mark.clause("3.1", "a log.txt on a full disk: nothing says that its lines are lost")
def test_log_that_cannot_be_written_is_said_once(program: Program) -> None:
    assert program.train("train.kimg=0.1", "run.dir=run").returncode == 0
    size, limits = 100_000_000, resource.getrlimit(resource.RLIMIT_FSIZE)
    os.truncate(program.cwd / "run/log.txt", size)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))  # the other files of a run are far smaller
    try:
        result = program("train", "run.dir=run", "resume=latest", "train.kimg=0.2", "log.every_kimg=0.03")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert result.returncode == 0, result.stderr
    assert (result.stdout + result.stderr).count("log.txt cannot be written") == 1
    assert (program.cwd / "run/checkpoints/000000000224/manifest.json").exists()


@pytest.mark.slow
@pytest.mark.clause("3.1", "`| head`: the training ends with the reader, and saves nothing")
def test_training_outlives_the_reader_of_its_output(program: Program) -> None:
    process = program.start("train", *SHORT)
    assert process.stdout
    assert process.stderr
    process.stdout.readline()
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait(120) == 0, error
    assert _saved(program)
    assert error.count("standard output cannot be written") == 1
    log = (program.cwd / "run/log.txt").read_text()
    assert log.count("standard output cannot be written") == 1
    assert "1.0/1 kimg" in log


@pytest.mark.slow
@pytest.mark.clause("3.1", "a standard output on a full disk ends the training")
def test_output_on_a_full_disk(program: Program) -> None:
    result = program.process("train", *SHORT, first=FULL)
    assert result.returncode == 0, result.stderr
    assert _saved(program)
    assert result.stderr.count("standard output cannot be written") == 1


@pytest.mark.slow
@pytest.mark.clause("3.1", "with stdout and stderr closed the training ends before it begins")
def test_closed_outputs(program: Program) -> None:
    closed = "\n".join([CLOSED.format(1, "stdout"), CLOSED.format(2, "stderr")])
    assert program.process("train", *SHORT, first=closed).returncode == 0
    assert _saved(program)


@pytest.mark.slow
@pytest.mark.clause("3.1", "a name that stdout can't encode ends the training")
def test_names_that_the_output_cannot_encode(program: Program) -> None:
    _pictures(program.cwd / "gemälde")
    data = ["data.name=folder", "data.root=gemälde", "data.image_size=8", "model.conditional=false"]
    result = program.process("train", *SHORT, *data, "run.dir=rün", "train.kimg=0.1", first=ASCII)
    assert result.returncode == 0, result.stderr
    assert r"r\xfcn" in result.stdout
    assert r"caf\udce9.png" in result.stdout
    assert "rün" in (program.cwd / "rün/log.txt").read_text(encoding="utf-8"), "what can be written stays as it is"
    assert r"caf\udce9.png" in (program.cwd / "rün/log.txt").read_text(encoding="utf-8")


@pytest.mark.clause("3.1", "names of files are printed and logged with their control characters")
def test_control_characters_are_escaped(program: Program) -> None:
    _pictures(program.cwd / "data")
    settings = ["data.name=folder", "data.root=data", "data.image_size=8", "model.conditional=false", "run.dir=run"]
    result = program.train(*settings, "train.kimg=0.1")
    assert result.returncode == 0, result.stderr
    log = (program.cwd / "run/log.txt").read_text(errors="surrogateescape")
    for text in (result.stdout, log):
        assert r"\x1b[2Jgrün\u202e.png" in text
        assert all(c.isprintable() for c in text.replace("\n", ""))
    strict = program.train(*settings, "data.broken_files=error", "run.dir=strict")
    assert strict.returncode == 1
    assert r"\x1b[2Jgrün\u202e.png" in strict.stderr or r"caf\udce9.png" in strict.stderr


@pytest.mark.clause("3.1", "`gan-dist recipes` prints the control characters of a file's first line")
def test_recipes_are_escaped(program: Program) -> None:
    (program.cwd / "configs").mkdir()
    (program.cwd / "configs/\x1b[2J.yaml").write_text("# red \x1b[31m\ntrain: {}\n")
    result = program("recipes", "configs")
    assert "\x1b" not in result.stdout
    assert r"configs/\x1b[2J.yaml  red \x1b[31m" in result.stdout


@pytest.mark.slow
@pytest.mark.clause("3.1", "output that cannot be written gives status 120 and a line about an ignored exception")
def test_output_of_a_command_that_is_lost(program: Program) -> None:
    (program.cwd / "configs").mkdir()
    (program.cwd / "configs/a.yaml").touch()
    result = program.process("recipes", "configs", first=FULL)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "No space left on device" in result.stderr


@pytest.mark.slow
@pytest.mark.clause("3.1", "an error that cannot be printed changes the exit status")
def test_exit_status_is_kept_without_a_reader(program: Program) -> None:
    first = "import os, sys; read, write = os.pipe(); os.close(read); os.dup2(write, 1); os.dup2(write, 2)"
    assert program.process("train", "train.kimgs=1", first=first).returncode == 2


@pytest.mark.slow
@pytest.mark.clause("3.1", "`evaluate RUN | head -1` loses the result")
def test_result_is_stored_before_it_is_printed(program: Program) -> None:
    ring = ["data.name=ring", "model.name=mlp", "model.g_args={tanh: false}", "model.conditional=false"]
    assert program.train(*ring, "train.kimg=0.1", "run.dir=run").returncode == 0
    program.process("evaluate", "run", "--n", "100", first=FULL)
    assert (program.cwd / "run/evaluations.jsonl").read_text().count("\n") == 1
