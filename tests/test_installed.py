"""What is installed beside the code: recipes by their names, launch files and job scripts; without a clone too."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import yaml
from conftest import RECIPES, ROOT, Result, Train, distance, run_here
from launched import launched
from program import Program
from safetensors.torch import load_file

SHARED = ("configs", "launch", "slurm")
FILES = sorted(
    f"{name}/{path.name}"
    for name in SHARED
    for path in (ROOT / name).iterdir()
    if path.is_file() and path.suffix != ".pyc"
)


def _settings(run: Path) -> dict[str, Any]:
    """The settings in a run's config, except its name."""
    settings: dict[str, Any] = yaml.safe_load((run / "config.yaml").read_text())
    return {section: values for section, values in settings.items() if section != "run"}


def test_recipe_is_named_without_its_file(train: Train, tmp_path: Path) -> None:
    result = train("digits_augment", "train.kimg=0.1", "run.dir=run")
    assert result.returncode == 0, result.stderr
    assert _settings(tmp_path / "run")["train"]["augment"] == ["translation", "cutout"]


def test_file_of_a_recipe_s_name_is_taken_first(train: Train, tmp_path: Path) -> None:
    (tmp_path / "digits_augment").write_text("loss: {name: hinge, r1_gamma: 0}\n")
    assert train("digits_augment", "train.kimg=0.1", "run.dir=run").returncode == 0
    assert _settings(tmp_path / "run")["loss"]["name"] == "hinge"


def test_directory_of_a_recipe_s_name_is_no_config(train: Train, tmp_path: Path) -> None:
    (tmp_path / "digits_augment").mkdir()
    assert train("digits_augment", "train.kimg=0.1", "run.dir=run").returncode == 0


def test_what_is_neither_file_nor_recipe_is_refused(train: Train) -> None:
    result = train("digits_augmented", "run.dir=run")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "digits_augmented: cannot read this config" in result.stderr
    assert "gan-dist recipes lists what needs no file (nearest: digits_augment)" in result.stderr


def test_run_without_a_config_is_that_of_the_recipe_digits(train: Train, tmp_path: Path) -> None:
    for words in ([], ["digits"]):
        assert train(*words, "train.kimg=0.1", f"run.dir={len(words)}").returncode == 0
    assert _settings(tmp_path / "0") == _settings(tmp_path / "1")


def test_init_writes_the_scripts_and_changes_none(program: Program) -> None:
    result = program("init", "mine")
    assert result.returncode == 0, result.stderr
    for name in ("launch", "slurm"):
        shipped = [path for path in (ROOT / name).iterdir() if path.is_file()]
        assert {path.name for path in shipped} == {path.name for path in (program.cwd / "mine" / name).iterdir()}
        assert all((program.cwd / "mine" / name / path.name).read_bytes() == path.read_bytes() for path in shipped)
    again = program("init", "mine")
    assert again.returncode == 2
    assert "mine/launch is already there" in again.stderr


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git knows, so that building leaves nothing in the repository."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("gan_dist", *SHARED, "pyproject.toml", "README.md", "LICENSE"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    return folder


def _build(clone: Path, what: str) -> Path:
    """Build the wheel or the sdist, without a network, and return its path."""
    code = f"from setuptools import build_meta; print(build_meta.build_{what}('dist'))"
    result = subprocess.run([sys.executable, "-c", code], cwd=clone, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return clone / "dist" / result.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(clone: Path) -> Path:
    return _build(clone, "wheel")


@pytest.mark.slow
def test_wheel_and_sdist_hold_each_file_once(wheel: Path, clone: Path) -> None:
    share = "gan_dist/share/"
    names = ZipFile(wheel).namelist()
    assert sorted(name.removeprefix(share) for name in names if name.startswith(share)) == FILES
    with tarfile.open(_build(clone, "sdist")) as archive:
        files = [member.name.partition("/")[2] for member in archive.getmembers() if not member.isdir()]
    assert sorted(name.removeprefix(share) for name in files if name.startswith(share)) == FILES


@pytest.mark.slow
def test_wheel_and_example_train_elsewhere(wheel: Path, tmp_path: Path) -> None:
    """They are installed without an index, and `python -I` sees neither the clone nor PYTHONPATH."""
    there = tmp_path / "site"
    example = shutil.copytree(ROOT / "examples/shapes_gan", tmp_path / "example")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", there]
    subprocess.run([*install, "--no-build-isolation", wheel, example], check=True, capture_output=True)
    code = f"import sys; sys.path.insert(0, {str(there)!r}); from gan_dist.cli import main; sys.exit(main())"

    def start(*arguments: str, place: dict[str, str]) -> subprocess.Popen[str]:
        env = {**os.environ, "OMP_NUM_THREADS": "1", **place}
        command, pipe = [sys.executable, "-I", "-c", code, *arguments], subprocess.PIPE
        return subprocess.Popen(command, cwd=tmp_path, env=env, stdout=pipe, stderr=pipe, text=True)

    def run(*arguments: str) -> Result:
        process = start(*arguments, place={})
        out, error = process.communicate()
        return Result(arguments, process.returncode, out, error)

    listed = run("recipes")
    assert [line.split()[0] for line in listed.stdout.splitlines()] == RECIPES, listed.stderr
    assert listed.stdout == run_here(ROOT, "recipes").stdout, "as in an editable installation"
    words = ["train", "example/shapes.yaml", "train.precision=fp64", "train.kimg=0.3", "tracking.wandb=disabled"]
    alone = run(*words, "run.dir=alone")
    assert alone.returncode == 0, alone.stderr
    ranks = [start(*words, "run.dir=shared", place=place) for place in launched(2)]
    errors = [rank.communicate()[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], errors
    one, two = (load_file(tmp_path / run / "checkpoints/000000000320/G.safetensors") for run in ("alone", "shared"))
    assert distance(one, two) < 1e-9
    assert json.loads((tmp_path / "alone/checkpoints/000000000320/state.json").read_text())["class_names"] == [
        "disk",
        "square",
    ]
    assert run("init", ".").returncode == 0
    assert (tmp_path / "slurm/train.sbatch").read_bytes() == (ROOT / "slurm/train.sbatch").read_bytes()
