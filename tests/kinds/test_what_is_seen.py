"""Progress, plot and grids at odd lengths and numbers of classes, and what a run records about itself."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, TINY, read_until
from PIL import Image
from program import TREE, Program, Result

RING = ["data.name=ring", "model.name=mlp", "model.g_args={tanh: false}", "model.conditional=false"]
# Standard error is a terminal; what it gets is copied into a file.
TERMINAL = """
import os, termios, threading
master, slave = os.openpty()
termios.tcsetwinsize(slave, (24, 120))
os.dup2(slave, 2)
def copy():
    with open("terminal.txt", "wb", buffering=0) as file:
        while True:
            file.write(os.read(master, 4096))
threading.Thread(target=copy, daemon=True).start()
"""


@pytest.fixture(scope="module")
def short(shared_program: Program) -> tuple[Path, Result]:
    """A run of digits of 1.2 kimg with the default interval of pictures, and what it printed."""
    settings = ["train.kimg=1.2", "log.every_kimg=0.1", "sample.every_kimg=100", "run.dir=run"]
    result = shared_program.train(*settings)
    assert result.returncode == 0, result.stderr
    return shared_program.cwd / "run", result


@pytest.mark.clause("5", "`left -00:00` and `0.1/0 kimg`")
def test_progress_of_a_short_run(program: Program) -> None:
    result = program.train("train.kimg=0.1", "log.every_kimg=0.03", "run.dir=run")
    assert re.findall(r"\S+/\S+ kimg", result.stdout) == [f"{n}/0.1 kimg" for n in ("0.032", "0.064", "0.096", "0.128")]
    assert "left -" not in result.stdout
    assert "left 00:00" in result.stdout


@pytest.mark.slow
@pytest.mark.clause("5", "losses are missing from log.txt on a terminal")
@pytest.mark.clause("5", "`0.1/0 kimg` in the progress bar")
def test_run_on_a_terminal(program: Program) -> None:
    result = program.process("train", *TINY, "train.kimg=0.1", "log.every_kimg=0.03", "run.dir=run", first=TERMINAL)
    assert result.returncode == 0
    bar = (program.cwd / "terminal.txt").read_text()
    assert "/0.1 kimg" in bar
    assert "/0 kimg" not in bar
    assert "img/s" not in result.stdout, "the bar shows it"
    assert re.search(r"0\.064/0\.1 kimg  D \d", (program.cwd / "run/log.txt").read_text())


@pytest.mark.clause("5", "the FID of the start is repeated in every line")
@pytest.mark.clause("5", "modes and high_quality are not plotted, and there is an empty axis for FID")
def test_metrics_of_points(program: Program) -> None:
    settings = [*RING, "train.kimg=0.3", "log.every_kimg=0.1", "metrics.every_kimg=100", "metrics.num_images=100"]
    result = program.train(*settings, "run.dir=run")
    assert result.returncode == 0, result.stderr
    assert len([line for line in result.stdout.splitlines() if "high_quality" in line]) == 2, "the start and the end"
    assert Image.open(program.cwd / "run/plot.png").size == (1500, 400), "losses, modes, high_quality"


@pytest.mark.clause("5", "an empty FID axis where no FID is measured")
def test_plot_without_metrics_has_one_panel(short: tuple[Path, Result]) -> None:
    assert Image.open(short[0] / "plot.png").size == (500, 400)


@pytest.mark.slow
@pytest.mark.clause("5", "plot.png is there only at the end")
def test_plot_is_there_during_the_run(program: Program) -> None:
    process = program.start("train", *TINY, "train.kimg=100000", "sample.every_kimg=1", "run.dir=run")
    read_until(process, "3.0/100000 kimg")
    there = (program.cwd / "run/plot.png").exists()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert there


@pytest.mark.clause("5", "no grid for 100 kimg")
def test_early_grid(short: tuple[Path, Result]) -> None:
    names = sorted(path.name for path in (short[0] / "samples").glob("grid-*"))
    assert names == [f"grid-00000{kimg}.png" for kimg in ("0.000", "0.032", "1.024", "1.216")]


@pytest.mark.clause("5", "a strip of 114x1734 for two classes (gan-dist sample --grid)")
@pytest.mark.parametrize(("classes", "number", "size"), [("3,7", 64, (438, 438)), ("1", 60, (438, 438))])
def test_grid_of_few_classes(
    classes: str, number: int, size: tuple[int, int], short: tuple[Path, Result], program: Program
) -> None:
    out = ["--out", str(program.cwd / "out")]
    result = program("sample", str(short[0]), "--n", str(number), "--classes", classes, "--grid", *out)
    assert result.returncode == 0, result.stderr
    assert Image.open(program.cwd / "out/grid.png").size == size


@pytest.mark.clause("5", "a strip for two classes in samples/")
def test_grids_of_two_classes_during_training(program: Program) -> None:
    for i in range(64):
        path = program.cwd / f"data/{'dark' if i % 2 else 'light'}/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 20 + i if i % 2 else 180 + i, np.uint8)).save(path)
    data = ["data.name=folder", "data.root=data", "data.class_folders=true", "data.image_size=8", "data.channels=1"]
    result = program.train(*data, "train.kimg=0.1", "run.dir=run")
    assert result.returncode == 0, result.stderr
    for name in ("real-000000.000.png", "grid-000000.000.png"):
        width, height = Image.open(program.cwd / "run/samples" / name).size
        assert 0.8 < width / height < 1.25, name
    real = np.asarray(Image.open(program.cwd / "run/samples/real-000000.000.png").convert("L"))[-432:]
    cells = [[int(real[54 * row + 10, 54 * column + 30]) for column in range(8)] for row in range(8)]
    assert all((cell > 150) == (column % 2 == 1) for row in cells for column, cell in enumerate(row))
    # 32 images of each class fill the grid, so none is shown twice.
    assert len({cell for row in cells for cell in row}) > 32


@pytest.mark.clause("5", "train.profile with a short run says nothing")
def test_profile_of_a_short_run(program: Program) -> None:
    result = program.train("train.kimg=0.1", "train.profile=true", "run.dir=run")
    assert result.returncode == 0, result.stderr
    assert not (program.cwd / "run/trace.json").exists()
    assert "no trace was written" in result.stdout
    assert "made 4" in result.stdout


@pytest.mark.clause("5", "no --version")
def test_version(program: Program) -> None:
    result = program("--version")
    assert result.returncode == 0
    assert re.match(r"gan_dist \d+\.\d+\.\d+", result.stdout)
    assert re.search(r"\btorch \d", result.stdout)


@pytest.mark.slow
@pytest.mark.clause("5", "no record of versions, commit and command line in the run directory")
def test_starts_are_recorded(program: Program) -> None:
    secret = "key-that-nobody-may-see"
    for kimg in ("0.1", "0.2"):
        words = ["run.dir=run", "resume=auto", f"train.kimg={kimg}"]
        assert program.process("train", *TINY, *words, env={"WANDB_API_KEY": secret}).returncode == 0
    starts = [json.loads(line) for line in (program.cwd / "run/starts.jsonl").read_text().splitlines()]
    assert ["train.kimg=0.1" in starts[0]["command"], "train.kimg=0.2" in starts[1]["command"]] == [True, True]
    assert [start["kimg"] for start in starts] == [0, 0.128]
    assert {"time", "host", "package", "python", "torch", "torchvision", "accelerate", "numpy", "device"} <= {
        *starts[0]
    }
    log = (program.cwd / "run/log.txt").read_text()
    assert log.count(starts[0]["package"]) == 2
    for path in (program.cwd / "run").rglob("*"):
        assert path.is_dir() or secret.encode() not in path.read_bytes(), path


@pytest.mark.clause("5", "memory used is not logged")
def test_memory_is_logged(short: tuple[Path, Result]) -> None:
    lines = [json.loads(line) for line in (short[0] / "metrics.jsonl").read_text().splitlines()]
    assert all(0.05 < line["memory_gib"] < 100 for line in lines if "loss_D" in line)
    assert re.search(r"img/s  [\d.]+ GiB", (short[0] / "log.txt").read_text())


@pytest.mark.clause("5", "the README says that the first command takes about a minute, which was 113 s")
def test_readme_says_what_was_measured() -> None:
    readme = Path(TREE or ROOT, "README.md").read_text()
    assert "about a minute" not in " ".join(readme.split())
