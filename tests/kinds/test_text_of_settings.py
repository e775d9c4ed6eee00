"""What a user types is taken as it is: texts, numbers, paths and files."""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, make_images
from program import COMMAND, TREE, Program

ONE = ("train.kimg=0.032", "log.every_kimg=0", "sample.every_kimg=0", "checkpoint.every_kimg=0")  # one iteration


def _saved(program: Program, run: str = "run") -> dict[str, dict[str, object]]:
    """The settings that a run has stored."""
    return yaml.safe_load((program.cwd / run / "config.yaml").read_bytes())


@pytest.mark.clause("1.1", "resume=000000015040 looks for checkpoint 6688, as if it were octal")
def test_checkpoint_is_named_by_its_digits(program: Program) -> None:
    short = ("log.every_kimg=0", "sample.every_kimg=0", "checkpoint.every_kimg=0.032", "run.dir=run")
    assert program.train(*short, "train.kimg=0.064").returncode == 0
    result = program.train(*short, "train.kimg=0.096", "resume=000000000032")
    assert result.returncode == 0, result.stderr
    assert "going on from run/checkpoints/000000000032" in result.stdout


@pytest.mark.clause("1.1", "run.dir=0010 trains into 8, 1e3 into 1000.0, 1:30 into 90, 'run #1' into run")
@pytest.mark.parametrize("name", ["0010", "1e3", "1:30", "run #1", "'no'"])
def test_directory_has_the_name_that_was_typed(program: Program, name: str) -> None:
    result = program.train(*ONE, f"run.dir={name}")
    assert result.returncode == 0, result.stderr
    assert [path.name for path in program.cwd.iterdir()] == [name]


@pytest.mark.clause("1.1", "run.name=no is False, data.root='/data/my #1' loses its end, '???' becomes data")
@pytest.mark.clause("4.2", "${oc.env:HOME} on the command line is looked up")
def test_text_on_the_command_line_stays_as_it_is(program: Program) -> None:
    typed = {
        "run.name": "no",
        "data.root": "/data/my #1",
        "tracking.project": "???",
        "tracking.entity": "${oc.env:HOME}",
    }
    result = program.train(*ONE, "run.dir=run", *(f"{name}={text}" for name, text in typed.items()))
    assert result.returncode == 0, result.stderr
    saved = _saved(program)
    assert {name: saved[name.split(".")[0]][name.split(".")[1]] for name in typed} == typed


@pytest.mark.clause("1.1", "a text in a file is parsed as YAML before it is text: no, 010, 1:30, ???")
def test_text_in_a_file_is_what_quotes_and_comments_leave(program: Program) -> None:
    (program.cwd / "a.yaml").write_text(
        "loss: {r1_gamma: 0}\ntracking: {project: 010, entity: 1:30}\nrun: {name: no}\n"
        "data:\n  root: ???  # a comment\nmetrics: {inception_weights: 'my #1'}\n"
    )
    result = program.train("a.yaml", *ONE, "run.dir=run")
    assert result.returncode == 0, result.stderr
    saved = _saved(program)
    assert (saved["tracking"]["project"], saved["tracking"]["entity"]) == ("010", "1:30")
    assert (saved["run"]["name"], saved["data"]["root"]) == ("no", "???")
    assert saved["metrics"]["inception_weights"] == "my #1"


@pytest.mark.clause("1.1", "for any text, what is stored is read back: ${, backslashes, control characters, lone bytes")
@pytest.mark.parametrize(
    "texts",
    [
        ("${", "\\${a}", "\\\\${oc.env:HOME}", "$"),
        ("a\\nb\\", " x ", "- a", "a: b #c"),
        ("a\nb\r\n", "\x01\x85\x7f", "\u2028\ufeff", "\U0010ffff"),
        (b"\xff\xfe".decode(errors="surrogateescape"), "'\"", "null", "\ttrue"),
    ],
    ids=["interpolations", "marks", "control characters", "bytes and words"],
)
def test_what_is_stored_is_read_back(program: Program, texts: tuple[str, ...]) -> None:
    names = ("tracking.project", "tracking.entity", "metrics.inception_weights", "data.root")
    # The second start reads what the first one has stored, and stores it again.
    short = ("log.every_kimg=0", "sample.every_kimg=0", "checkpoint.every_kimg=0.032", "run.dir=run")
    result = program.train(*short, "train.kimg=0.032", *(f"{name}={text}" for name, text in zip(names, texts)))
    assert result.returncode == 0, result.stderr
    result = program("train", "run.dir=run", "resume=latest", "train.kimg=0.064")
    assert result.returncode == 0, result.stderr
    saved = _saved(program)
    assert tuple(saved[name.split(".")[0]][name.split(".")[1]] for name in names) == texts


@pytest.mark.clause("1.1", "train.kimg=1:30 is 90, 010 is 8, 1_0 is 10; lists and choices likewise")
@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("train.kimg=1:30", "train.kimg=1:30 must be a number"),
        ("train.kimg=010", "train.kimg=010 must be a number"),
        ("train.seed=1_0", "train.seed=1_0 must be a whole number"),
        ("train.seed=0x10", "train.seed=0x10 must be a whole number"),
        ("train.batch_size=٦٤", "train.batch_size=٦٤ must be a whole number"),
        ("data.image_size=٦٤", "data.image_size=٦٤ must be H or HxW"),
        ("train.kimg=???", "train.kimg=??? must be a number"),
        ("model.g_widths=[010,1:30]", "model.g_widths=[010, 1:30] must be a list of whole numbers"),
        ("train.augment=[color,no]", "train.augment=no: choose one of color, translation, cutout"),
        ("tracking.wandb=off", "tracking.wandb=off: choose one of auto, online, offline, disabled"),
        ("data.channels=03", "data.channels=03: choose one of 0, 1, 3, 4"),
        ("model.g_args={tanh: no}", "has no: write true, false, null, a decimal number, or a text in quotes"),
        ("optim.G.args={weight_decay: 010}", "has 010: write"),
    ],
)
def test_numbers_are_decimal_and_words_are_words(program: Program, setting: str, text: str) -> None:
    result = program("prefetch", "metrics.every_kimg=0", setting)
    assert result.returncode == 2, result.stdout
    assert result.stderr.count("\n") == 1
    assert text in result.stderr


@pytest.mark.clause("1.1", "~ is not expanded in run.dir, data.root, resume, weights, the commands' paths")
def test_home_directory_in_paths_and_nowhere_else(program: Program) -> None:
    home = program.cwd / "home"
    home.mkdir()
    (home / "a.yaml").write_text("# a recipe\nloss: {r1_gamma: 0}\n")
    env = {"HOME": str(home)}
    texts = ("run.name=~", "tracking.project=~/x", "data.root=~/x", "metrics.inception_weights=~/w")
    one = (*ONE, "checkpoint.every_kimg=1", "metrics.every_kimg=0", "tracking.wandb=disabled")
    arguments = ("train.device=cpu", "train.batch_size=32", "model.g_widths=[8]", "model.d_widths=[8]", *one)
    assert program("train", "~/a.yaml", *arguments, *texts, "run.dir=~/run", env=env).returncode == 0
    saved = yaml.safe_load((home / "run/config.yaml").read_bytes())
    assert (saved["run"]["name"], saved["tracking"]["project"]) == ("~", "~/x")
    assert saved["data"]["root"] == f"{home}/x"
    assert saved["metrics"]["inception_weights"] == f"{home}/w"
    again = ("run.dir=~/run", "resume=~/run/checkpoints/000000000032", "train.kimg=0.064")
    assert program("train", *again, env=env).returncode == 0
    checkpoint = ("--checkpoint", "~/run/checkpoints/000000000064")
    assert program("sample", "~/run", "--n", "1", "--out", "~/out", *checkpoint, env=env).returncode == 0
    assert (home / "out").is_dir()
    assert "a recipe" in program("recipes", "~", env=env).stdout
    result = program("evaluate", "~/no run", env=env)
    assert str(home / "no run") in result.stderr
    assert [path.name for path in program.cwd.iterdir()] == ["home"]


@pytest.mark.clause("1.1", "~ is not expanded in GAN_DIST_CACHE")
def test_home_directory_in_the_cache_s_path(program: Program) -> None:
    offline = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    env = {"HOME": str(program.cwd / "home"), "GAN_DIST_CACHE": "~/cache", **offline}
    result = program("prefetch", "metrics.extractor=inception", env=env)
    assert f"no usable weights at {program.cwd}/home/cache/" in result.stderr
    assert [path.name for path in program.cwd.iterdir()] == ["home"]


@pytest.mark.clause("1.1", "~ is not expanded in GAN_DIST_STAGE")
def test_home_directory_in_the_stage_s_path(program: Program) -> None:
    make_images(program.cwd / "images")
    folder = ("data.name=folder", "data.root=images", "data.image_size=16", "data.memory_gib=1e-9", "data.workers=0")
    env = {"HOME": "/proc/nowhere", "GAN_DIST_STAGE": "~/stage"}
    result = program.train(*ONE, *folder, "model.conditional=false", "train.batch_size=16", env=env)
    assert "GAN_DIST_STAGE=/proc/nowhere/stage" in result.stdout + result.stderr


@pytest.mark.slow
@pytest.mark.clause("1.1", "slurm/job.sh sees another directory than Python: quotes, spaces, leading zeros, ~")
def test_job_script_sees_the_directory_that_python_sees(program: Program) -> None:
    tree = Path(TREE or ROOT)
    home = program.cwd / "my home"
    home.mkdir()
    user = getpass.getuser()
    for typed in ("0010", "a  b", "'x'", '"y"', "run #1", "1e3", "~/in home", "~+", "a=b", f"./~{user}"):
        script = """eval "$(sed -n '/^option()/,/^}/p' "$1")"; option run.dir "" run.dir=first "run.dir=$2" """
        command = ["bash", "-c", script, "job", str(tree / "slurm/job.sh"), typed]
        seen = subprocess.run(command, env={**os.environ, "HOME": str(home)}, capture_output=True, text=True).stdout
        assert seen.endswith("\n")
        before = {*program.cwd.rglob("config.yaml")}
        result = program.train(*ONE, "run.dir=first", f"run.dir={typed}", env={"HOME": str(home)})
        assert result.returncode == 0, result.stderr
        assert {*program.cwd.rglob("config.yaml")} - before == {program.cwd / seen[:-1] / "config.yaml"}, typed


@pytest.mark.clause("1.1", "run.dir= is an empty name in slurm/job.sh, and the default directory in Python")
@pytest.mark.slow
def test_empty_directory_is_the_default_in_job_scripts() -> None:
    script = """eval "$(sed -n '/^option()/,/^}/p' "$1")"; option run.dir "runs/a" run.dir=b run.dir= """
    command = ["bash", "-c", script, "job", str(Path(TREE or ROOT) / "slurm/job.sh")]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "runs/a\n"


@pytest.mark.clause("1.1", "an argument is a file if it ends in .yaml or .yml and what stands before a = is no setting")
def test_config_file_with_an_equals_sign(program: Program) -> None:
    (program.cwd / "lr=1.yml").write_text("loss: {r1_gamma: 0}\ntrain: {seed: 7}\n")
    result = program.train("lr=1.yml", *ONE, "run.dir=run.yaml")
    assert result.returncode == 0, result.stderr
    assert _saved(program, "run.yaml")["train"]["seed"] == 7


@pytest.mark.slow
@pytest.mark.clause("1.1", "text files are read and written in the locale's encoding")
def test_text_files_are_utf8_whatever_the_locale(program: Program) -> None:
    (program.cwd / "a.yaml").write_text("# größer\nloss: {r1_gamma: 0}\nrun: {name: größe}\n", encoding="utf-8")
    tiny = ("model.g_widths=[8]", "model.d_widths=[8]", "train.batch_size=32", "train.device=cpu", *ONE)
    arguments = ("train", "a.yaml", *tiny, "metrics.every_kimg=0", "tracking.wandb=disabled", "run.dir=run")
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(TREE or ROOT)}
    command = [sys.executable, "-c", COMMAND, *arguments]
    result = subprocess.run(command, cwd=program.cwd, env={**os.environ, **ascii_only}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "name: größe" in (program.cwd / "run/config.yaml").read_text(encoding="utf-8")
