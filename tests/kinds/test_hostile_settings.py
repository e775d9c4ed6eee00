"""Configs that take memory, time or secrets, that write elsewhere, and what may stand in place of a config file."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from program import Program

QUICK = ("train.kimg=0.032", "log.every_kimg=0", "sample.every_kimg=0", "checkpoint.every_kimg=0")


@pytest.mark.clause("4.2", "brackets nested deep and huge numbers on the command line end in a traceback")
@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("model.g_widths=" + "[" * 100_000, "at most 16384"),
        ("model.g_widths=" + "[" * 10_000, "nested more than"),
        ("model.g_args=" + "{a: " * 4000, "nested more than"),
        ("model.g_args" + ".a" * 40_000 + "=1", "unknown setting model.g_args.a.a"),
        ("train.kimg=" + "9" * 100_000, "a number has at most 40"),
        ("model.g_widths=[" + "9" * 10_000 + "]", "a number has at most 40"),
        ("optim.G.args={eps: 1" + "0" * 5000 + "}", "a number has at most 40"),
        ("model.g_args={tanh: 1e999}", "too large"),
        ("tracking.project=" + "x" * 100_000, "has 100000 characters"),
    ],
    ids=["too long", "brackets", "braces", "dots", "number", "in a list", "in a mapping", "infinite", "text"],
)
def test_deep_and_long_values_are_refused(program: Program, setting: str, text: str) -> None:
    result = program("prefetch", "metrics.every_kimg=0", setting)
    assert result.returncode == 2, result.stderr[-300:]
    assert result.stderr.count("\n") == 1
    assert text in result.stderr
    assert len(result.stderr) < 1000


@pytest.mark.clause("4.2", "brackets nested deep, long lists and huge numbers in a file take minutes")
@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("model: {g_widths: " + "[" * 100_000, "nested more than"),
        ("- " * 60_000, "nested more than"),
        ("model: {g_widths: [" + "1," * 60_000 + "]}", "more than 10000 keys and values"),
        ("train: {kimg: " + "9" * 100_000 + "}", "a number has at most 40"),
        ("train:\n  kimg: 1 #" + "x" * 1_000_000, "a config has at most"),
    ],
    ids=["brackets", "block", "list", "number", "size"],
)
def test_deep_and_long_files_are_refused(program: Program, content: str, text: str) -> None:
    (program.cwd / "a.yaml").write_text(content)
    result = program("prefetch", "a.yaml", "metrics.every_kimg=0")
    assert result.returncode == 2, result.stderr[-300:]
    assert result.stderr.count("\n") == 1
    assert text in result.stderr


@pytest.mark.clause("4.2", "${oc.env:SECRET} in a file leaks environment variables into config.yaml and W&B")
def test_nothing_is_looked_up_in_the_environment(program: Program) -> None:
    (program.cwd / "a.yaml").write_text(
        "loss: {r1_gamma: 0}\n"
        "tracking: {project: '${oc.env:SECRET}', entity: '${tracking.project}${tracking.project}'}\n"
    )
    result = program.train("a.yaml", *QUICK, "run.dir=run", env={"SECRET": "swordfish"})
    assert result.returncode == 0, result.stderr
    stored = (program.cwd / "run/config.yaml").read_text()
    assert "swordfish" not in stored + result.stdout
    assert "${oc.env:SECRET}" in stored


@pytest.mark.clause("4.2", "a config downloads into any directory that it names")
def test_file_cannot_download_elsewhere(program: Program, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (program.cwd / "a.yaml").write_text(f"loss: {{r1_gamma: 0}}\ndata: {{name: MNIST, root: {elsewhere}}}\n")
    offline = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    result = program("prefetch", "a.yaml", "metrics.every_kimg=0", env=offline)
    assert result.returncode == 1
    assert "data.download=true on the command line" in result.stderr
    assert not list(elsewhere.iterdir())
    named = program("prefetch", "a.yaml", "metrics.every_kimg=0", f"data.root={elsewhere}", env=offline)
    assert "the download failed" in named.stderr, "the command line may name any directory"


@pytest.mark.slow
@pytest.mark.clause("2.5", "a config on the command line may be a pipe, bounded in bytes")
def test_config_may_be_a_pipe(program: Program) -> None:
    os.mkfifo(program.cwd / "a.yaml")
    os.mkfifo(program.cwd / "large.yaml")

    def write(name: str, content: bytes) -> None:
        with suppress(BrokenPipeError):
            Path(program.cwd, name).write_bytes(content)

    settings = threading.Thread(target=write, args=("a.yaml", b"loss: {r1_gamma: 0}\ntrain: {seed: 7}\n"), daemon=True)
    settings.start()
    result = program.train("a.yaml", *QUICK, "run.dir=run")
    settings.join(10)
    assert result.returncode == 0, result.stderr
    assert "seed: 7\n" in (program.cwd / "run/config.yaml").read_text()
    large = threading.Thread(target=write, args=("large.yaml", b"# " + b"x" * 2**20), daemon=True)
    large.start()
    result = program.train("large.yaml", *QUICK, "run.dir=run2")
    large.join(10)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "a config has at most" in result.stderr


@pytest.mark.slow
@pytest.mark.clause("2.5", "a pipe that nobody writes to, in place of a config, hangs")
def test_pipe_without_a_writer_is_refused(program: Program) -> None:
    os.mkfifo(program.cwd / "a.yaml")
    result = program.process("train", "a.yaml", *QUICK, timeout=30)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "has not ended within" in result.stderr


@pytest.mark.slow
@pytest.mark.clause("2.5", "a pipe in place of a run's config, or of a recipe, hangs")
def test_pipe_in_place_of_a_stored_config_is_refused(program: Program) -> None:
    (program.cwd / "run").mkdir()
    os.mkfifo(program.cwd / "run/config.yaml")
    result = program.process("train", "run.dir=run", "resume=auto", *QUICK, timeout=30)
    assert (result.returncode, result.stderr.count("\n")) in ((1, 1), (2, 1)), "as other files of a run, or as a config"
    assert "regular file" in result.stderr
    result = program.process("recipes", "run", timeout=30)
    assert (result.returncode, result.stderr) == (0, "")
    assert "not a regular file" in result.stdout


@pytest.mark.clause("2.5", "a device is read as a config")
def test_device_is_no_config(program: Program) -> None:
    (program.cwd / "a.yaml").symlink_to("/dev/null")
    result = program("prefetch", "a.yaml", "metrics.every_kimg=0")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "not a regular file" in result.stderr
