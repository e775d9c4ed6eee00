"""Settings that cannot be cleared, that are overwritten, that mean never, or that come from an old default."""

from __future__ import annotations

import pytest
import yaml
from program import Program

QUICK = ("train.kimg=0.032", "log.every_kimg=0", "sample.every_kimg=0", "checkpoint.every_kimg=0", "run.dir=run")


def _saved(program: Program) -> dict[str, dict[str, object]]:
    return yaml.safe_load((program.cwd / "run/config.yaml").read_bytes())


@pytest.mark.clause("1.11", "model.g_args={} on the command line can't clear a recipe's")
def test_empty_mapping_clears_the_file_s(program: Program) -> None:
    (program.cwd / "a.yaml").write_text("loss: {r1_gamma: 0}\nmodel: {g_args: {tanh: false}, d_args: {}}\n")
    result = program.train("a.yaml", *QUICK, "model.g_args={}")
    assert result.returncode == 0, result.stderr
    assert _saved(program)["model"]["g_args"] == {}


def test_mapping_is_added_to_the_file_s(program: Program) -> None:
    (program.cwd / "a.yaml").write_text("loss: {r1_gamma: 0}\noptim: {G: {args: {eps: 1e-7, weight_decay: 0.1}}}\n")
    added = ("optim.G.args={eps: 1e-6}", "optim.G.args.amsgrad=true")
    assert program.train("a.yaml", *QUICK, *added).returncode == 0
    assert _saved(program)["optim"]["G"]["args"] == {"eps": 1e-6, "weight_decay": 0.1, "amsgrad": True}  # type: ignore[index]


@pytest.mark.clause("1.11", "optim.G.args={lr: ...} is accepted and overwritten")
@pytest.mark.parametrize("name", ["lr", "betas"])
def test_argument_that_is_a_setting_is_refused(program: Program, name: str) -> None:
    value = "[0.1, 0.2]" if name == "betas" else "0.5"
    result = program("prefetch", "metrics.every_kimg=0", f"optim.D.args={{{name}: {value}}}")
    assert result.returncode == 2
    assert f"set optim.D.{name} instead" in result.stderr


@pytest.mark.clause("1.11", "log.every_kimg=0.0004 silently means never")
@pytest.mark.parametrize(
    "setting",
    [
        "log.every_kimg",
        "sample.every_kimg",
        "metrics.every_kimg",
        "checkpoint.every_kimg",
        "checkpoint.keep_every_kimg",
    ],
)
def test_less_than_one_image_is_refused(program: Program, setting: str) -> None:
    result = program("prefetch", "metrics.every_kimg=0", f"{setting}=0.0004")
    assert result.returncode == 2, result.stdout
    assert f"{setting}=0.0004 is less than one image: set at least 0.001, or 0" in result.stderr


@pytest.mark.clause("1.11", "R1 is on by default; a YAML that relied on it is not told")
def test_config_without_r1_is_told(program: Program) -> None:
    (program.cwd / "a.yaml").write_text("loss: {name: hinge}\n")
    result = program.train("a.yaml", *QUICK)
    assert result.returncode == 0, result.stderr
    assert _saved(program)["loss"]["r1_gamma"] == 0
    said = "a.yaml: loss.r1_gamma is not set, and its default is 0; it was 1"
    assert result.stdout.count(said) == 1
    assert (program.cwd / "run/log.txt").read_text().count(said) == 1


@pytest.mark.parametrize("named", ["in the file", "on the command line"])
def test_config_with_r1_is_not_told(program: Program, named: str) -> None:
    (program.cwd / "a.yaml").write_text("loss: {r1_gamma: 0}\n" if named == "in the file" else "loss: {name: hinge}\n")
    result = program.train("a.yaml", *QUICK, *([] if named == "in the file" else ["loss.r1_gamma=0.5"]))
    assert result.returncode == 0, result.stderr
    assert "its default is 0" not in result.stdout


@pytest.mark.clause("1.11", "R1 with batch normalization in D is not said")
def test_r1_with_batch_normalization_in_d_is_said(program: Program) -> None:
    dcgan = ("model.name=dcgan", "data.image_size=16", "model.g_widths=[8,4]", "model.d_widths=[4,8]")
    result = program.train(*dcgan, *QUICK, "loss.r1_gamma=1")
    assert result.returncode == 0, result.stderr
    said = "loss.r1_gamma=1.0 with batch normalization in D of model.name=dcgan"
    assert result.stdout.count(said) == 1
    assert (program.cwd / "run/log.txt").read_text().count(said) == 1
