"""A run that goes on: which settings count, what is said, and what is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from forged import forge
from program import Program

pytestmark = pytest.mark.slow

SHORT = ["train.kimg=1", "checkpoint.every_kimg=1", "sample.every_kimg=0", "run.dir=run", "resume=auto"]
LATEST = ["run.dir=run", "resume=latest"]
CONFIG = "optim: {G: {schedule: cosine}}\n"


@pytest.fixture(scope="module")
def made(shared_program: Program) -> Path:
    """A directory with a config file and the finished run of it."""
    (shared_program.cwd / "c.yaml").write_text(CONFIG)
    result = shared_program.train("c.yaml", *SHORT)
    assert result.returncode == 0, result.stderr
    return shared_program.cwd


@pytest.fixture
def resumed(made: Path, program: Program) -> Program:
    """The command line in a copy of that directory."""
    return program.with_copy_of(made)


def _files(run_dir: Path) -> dict[Path, tuple[int, str]]:
    """Every file of a run with its time and content, but the lock's and the log."""
    files = [path for path in run_dir.rglob("*") if path.is_file() and path.name not in (".lock", ".owner", "log.txt")]
    return {path: (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files}


MEANING = {
    "loss.name=hinge": "loss.name: non_saturating -> hinge",
    "loss.r1_gamma=7": "-> 7.0",
    "train.augment=[color]": "train.augment: [] -> ['color']",
    "data.hflip=true": "data.hflip: False -> True",
    "train.n_critic=2": "train.n_critic: 1 -> 2",
    "train.precision=bf16": "train.precision: fp32 -> bf16",
}


@pytest.mark.clause("1.3", "loss, penalties, augmentation, flips, n_critic and precision change in silence")
@pytest.mark.clause("1.3", "what was allowed once is never stored, and the same words again change nothing")
def test_what_changes_the_meaning_is_refused_unless_allowed(resumed: Program) -> None:
    before = _files(resumed.cwd / "run")
    result = resumed("train", *LATEST, "train.kimg=1.1", *MEANING)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    for change in MEANING.values():
        assert change in result.stderr
    assert _files(resumed.cwd / "run") == before
    allowed = f"allow_changes=[{','.join(setting.partition('=')[0] for setting in MEANING)}]"
    words = ["c.yaml", "run.dir=run", "resume=auto", "train.kimg=1.1", *MEANING, allowed]
    result = resumed("train", *words)
    assert result.returncode == 0, result.stderr
    for change in MEANING.values():
        assert change in result.stdout
        assert change in (resumed.cwd / "run/log.txt").read_text()
    config = (resumed.cwd / "run/config.yaml").read_text()
    assert "name: hinge" in config
    assert "allow_changes: []" in config
    again = resumed("train", *words)
    assert again.returncode == 0, again.stderr
    assert "finished: nothing to do" in again.stdout


@pytest.mark.clause("1.3", "rates, EMA and the metrics' protocol change in silence")
def test_every_other_difference_is_said(resumed: Program) -> None:
    words = ["optim.D.lr=1e-4", "ema.half_life_kimg=3", "metrics.num_images=77", "data.workers=0"]
    result = resumed("train", *LATEST, "train.kimg=1.1", *words)
    assert result.returncode == 0, result.stderr
    said = ("optim.D.lr: 0.0002 -> 0.0001", "ema.half_life_kimg: 10.0 -> 3.0", "metrics.num_images: 10000 -> 77",
            "data.workers: 2 -> 0", "train.kimg: 1.0 -> 1.1")  # fmt: skip
    for text in said:
        assert result.stdout.count(text) == 1
        assert text in (resumed.cwd / "run/log.txt").read_text()


@pytest.mark.clause("1.3", "a cosine schedule made longer jumps from 0 back to a high rate in silence")
def test_schedule_that_jumps_is_said_with_the_remedy(resumed: Program) -> None:
    result = resumed("train", *LATEST, "train.kimg=1.1")
    assert result.returncode == 0, result.stderr
    assert "at 1.024 kimg the learning rate jumps from 0 to " in result.stdout
    assert "optim.G.schedule_kimg=1 keeps the old schedule" in result.stdout
    assert "optim.D" not in result.stdout


@pytest.mark.clause("1.3", "a longer run with the old schedule")
def test_schedule_that_is_kept_says_nothing_of_a_jump(resumed: Program) -> None:
    result = resumed("train", *LATEST, "train.kimg=1.1", "optim.G.schedule_kimg=1")
    assert result.returncode == 0, result.stderr
    assert "optim.G.schedule_kimg: 0.0 -> 1.0" in result.stdout
    assert "jumps" not in result.stdout


@pytest.mark.clause("1.3", "a config file that was edited since counts for a requeued job, or ends its chain")
@pytest.mark.parametrize("edit", ["edited", "broken", "gone"])
def test_config_file_counts_only_for_a_new_run(edit: str, resumed: Program) -> None:
    file = resumed.cwd / "c.yaml"
    file.unlink()
    if edit != "gone":
        file.write_text(CONFIG + ("loss: {r1_gamma: 3}\n" if edit == "edited" else "loss: {r1_gama: 3}\n"))
    result = resumed("train", "c.yaml", "run.dir=run", "resume=auto", "train.kimg=1.1")
    assert result.returncode == 0, result.stderr
    assert "r1_gamma: 3" not in (resumed.cwd / "run/config.yaml").read_text()
    said = {"edited": "loss.r1_gamma: 3.0 -> ", "broken": "loss.r1_gama", "gone": "No such file"}[edit]
    for text in (result.stdout, (resumed.cwd / "run/log.txt").read_text()):
        assert text.count("does not count, as the run goes on") == 1
        assert said in text


@pytest.mark.clause("1.3", "a requeued job with the same words is told nothing and changes nothing")
def test_same_words_again_say_nothing(program: Program) -> None:
    (program.cwd / "c.yaml").write_text(CONFIG)
    words = ["c.yaml", *SHORT, "train.precision=auto", "loss.name=hinge", "allow_changes=[loss.name]"]
    assert program.train(*words).returncode == 0
    newest = program.cwd / "run/checkpoints/000000001024"
    shutil.rmtree(newest)  # as after a kill before it was written
    shutil.copytree(program.cwd / "run", program.cwd / "kept")
    again = program.train(*words)
    assert again.returncode == 0, again.stderr
    assert "warning" not in again.stdout
    assert newest.is_dir()
    settings = [(program.cwd / name / "config.yaml").read_text().splitlines()[2:] for name in ("run", "kept")]
    assert settings[0] == settings[1]


@pytest.mark.clause("1.3", "a finished run that is started again makes grid, evaluation and checkpoint once more")
def test_finished_run_does_nothing_and_says_so(resumed: Program) -> None:
    before = _files(resumed.cwd / "run")
    result = resumed("train", "c.yaml", "run.dir=run", "resume=auto", "sample.every_kimg=1", "optim.D.lr=1e-4")
    assert result.returncode == 0, result.stderr
    assert "optim.D.lr: 0.0002 -> 0.0001" in result.stdout
    assert "run is finished: nothing to do" in result.stdout
    assert _files(resumed.cwd / "run") == before
    longer = resumed("train", "c.yaml", "run.dir=run", "resume=auto", "train.kimg=1.1")
    assert longer.returncode == 0
    assert (resumed.cwd / "run/checkpoints/000000001120").is_dir()


@pytest.mark.clause("1.3", "the evaluation at the end is not lost where only it was interrupted")
def test_run_whose_last_evaluation_is_missing_is_not_finished(program: Program) -> None:
    points = "data: {name: ring}\nmodel: {conditional: false, g_args: {tanh: false}}\n"
    (program.cwd / "c.yaml").write_text(points)
    words = ["c.yaml", *SHORT, "metrics.every_kimg=1", "metrics.num_images=100"]
    assert program.train(*words).returncode == 0
    checkpoint = program.cwd / "run/checkpoints/000000001024"
    assert json.loads((checkpoint / "state.json").read_text())["metrics_nimg"] == 1024
    lines = (program.cwd / "run/metrics.jsonl").read_text().splitlines()
    forge(checkpoint, metrics_nimg=0)
    again = program.train(*words)
    assert again.returncode == 0, again.stderr
    assert "nothing to do" not in again.stdout
    assert json.loads((checkpoint / "state.json").read_text())["metrics_nimg"] == 1024
    assert len((program.cwd / "run/metrics.jsonl").read_text().splitlines()) == len(lines) + 1
    assert "nothing to do" in program.train(*words).stdout


@pytest.mark.clause("1.3", "what can't work at all is refused even if it is allowed")
def test_what_cannot_be_loaded_is_always_refused(resumed: Program) -> None:
    for setting in ("model.g_widths=[16]", "optim.G.name=SGD"):
        name = setting.partition("=")[0]
        result = resumed("train", *LATEST, "train.kimg=1.1", setting, f"allow_changes=[{name}]")
        assert result.returncode == 2
        assert f"{name}: " in result.stderr
        assert "allow_changes cannot allow it" in result.stderr
        assert result.stderr.count("\n") == 1
    result = resumed("train", *LATEST, "train.kimg=1.1", "optim.G.name=AdamW", "allow_changes=[optim.G.name]")
    assert result.returncode == 0, result.stderr


@pytest.mark.clause("1.3", "allow_changes comes from the command line only, and its names are checked")
def test_allow_changes_is_a_word_of_the_command_line(program: Program) -> None:
    (program.cwd / "c.yaml").write_text(CONFIG + "allow_changes: [loss.name]\n")
    result = program.train("c.yaml", "run.dir=run")
    assert result.returncode == 2
    assert "allow_changes belongs to one start of a run: name it on the command line" in result.stderr
    result = program.train("run.dir=run", "allow_changes=[loss.nme]")
    assert result.returncode == 2
    assert "allow_changes=[loss.nme]: no such setting; nearest: loss.name" in result.stderr
    assert not (program.cwd / "run").exists()
