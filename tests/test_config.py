"""Settings: defaults, files, overrides, and one clear line for each mistake."""

from __future__ import annotations

import re
from pathlib import Path

import hypothesis
import pytest
from conftest import ROOT, Train, examples
from hypothesis import given
from hypothesis import strategies as st

from gan_dist.cli import main
from gan_dist.cli.arguments import read_config
from gan_dist.data import DataInfo
from gan_dist.data.datasets import DATASETS, describe
from gan_dist.errors import ConfigError, UserError
from gan_dist.game.augment import AUGMENTATIONS
from gan_dist.game.losses import LOSSES
from gan_dist.metrics.extractors import EXTRACTORS
from gan_dist.models import names
from gan_dist.settings.config import as_yaml, load_config, make_config, read_file, read_overrides
from gan_dist.settings.schema import settings_help, walk_settings
from gan_dist.wiring.checks import check_game
from gan_dist.wiring.data import source_of

RECIPES = sorted((ROOT / "configs").glob("*.yaml"))


def test_override_beats_file_beats_default(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("train: {kimg: 7, seed: 3}\n")
    config = load_config(file, ["train.seed=4", "optim.G.lr=1e-3", "data.image_size=64"])
    assert (config.train.kimg, config.train.seed, config.train.batch_size) == (7, 4, 64)
    assert (config.optim.G.lr, config.optim.D.lr) == (1e-3, 2e-4)
    assert config.data.image_size == "64"


def test_saved_config_loads_to_the_same(tmp_path: Path) -> None:
    config = load_config(None, ["optim.G.args={eps: 1e-6}", "model.g_widths=[8,16]", "data.hflip=true"])
    (tmp_path / "config.yaml").write_text(as_yaml(config))
    assert load_config(tmp_path / "config.yaml") == config


texts = st.text(st.characters(exclude_categories=()), max_size=40)  # lone surrogates too: bytes that are not UTF-8
pieces = st.lists(
    st.sampled_from(["${", "}", "\\", "???", "'", '"', "\n", " ", "#", ": ", "- ", "1e3", "no", "\udcff"])
)


@hypothesis.settings(max_examples=examples(250))
@given(text=texts | pieces.map("".join))
def test_every_text_is_read_back_as_it_was(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("text") / "config.yaml"
    inside = ("model.g_args", {"x": text, text: [text, {"y": text}]})
    config = make_config([*read_overrides([f"tracking.project={text}"]), ("train.augment", [text]), inside])
    assert config.tracking.project == text
    file.write_text(as_yaml(config), encoding="utf-8")
    assert load_config(file) == config


def test_mapping_is_added_and_an_empty_one_clears(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("model: {g_args: {a: 1, b: {c: 2}}}")
    assert load_config(file, ["model.g_args={a: x}", "model.g_args.b.d=[1,no way]"]).model.g_args == {
        "a": "x",
        "b": {"c": 2, "d": [1, "no way"]},
    }
    assert load_config(file, ["model.g_args={}", "model.g_args.e=true"]).model.g_args == {"e": True}


def test_without_a_file_the_settings_are_those_of_the_digits_recipe() -> None:
    assert read_config(["train.seed=3"]) == read_config([str(ROOT / "configs/digits.yaml"), "train.seed=3"])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_can_be_run_and_says_what_it_is(path: Path) -> None:
    assert "loss.r1_gamma" in dict(read_file(path)), "earlier versions had another default"
    config = load_config(path)
    size = int(config.data.image_size or 64)
    info = DataInfo((3, size, size), 0, 1000) if config.data.name == "folder" else describe(source_of(config.data))
    check_game(config, info, world_size=1)  # networks of the real size, on the meta device
    assert path.read_text().startswith("# ")


def test_help_lists_every_setting_with_default_and_comment() -> None:
    text = settings_help()
    for name, _, _, comment in walk_settings():
        assert f"  {name}=" in text
        assert len(comment) > 10, f"{name} has no comment"
        assert comment in text


MISTAKES = {
    "wrong key": (["trian.kimg=3"], ["trian.kimg", "train.kimg"]),
    "wrong key, right section": (["train.kimgs=3"], ["train.kimgs", "nearest: train.kimg"]),
    "key in the wrong section": (["data.batch_size=3"], ["data.batch_size", "train.batch_size"]),
    "section for a value": (["train=3"], ["train=3", "train.kimg"]),
    "type": (["train.batch_size=many"], ["train.batch_size=many", "a whole number"]),
    "fraction for a whole number": (["train.batch_size=1.5"], ["train.batch_size=1.5", "a whole number"]),
    "not a list": (["model.g_widths=3"], ["model.g_widths=3", "a list of whole numbers"]),
    "wrong in a list": (["model.g_widths=[a]"], ["model.g_widths=", "a list of whole numbers"]),
    "null": (["train.kimg=null"], ["train.kimg=null", "a number"]),
    "choice": (["loss.name=non_saturated"], ["loss.name=non_saturated", "nearest: non_saturating"]),
    "data set": (["data.name=fashionmnist"], ["data.name=fashionmnist", "nearest: FashionMNIST"]),
    "architecture": (["model.name=dcgam"], ["model.name=dcgam", "nearest: dcgan"]),
    "optimizer": (["optim.G.name=adam"], ["optim.G.name=adam", "nearest: Adam"]),
    "optimizer's argument": (["optim.D.args={mass: 3}"], ["optim.D", "mass"]),
    "optimizer's arguments that exclude each other": (
        ["optim.G.args={fused: true, foreach: true}"],
        ["optim.G", "RuntimeError"],
    ),
    "optimizer's argument that is a setting": (["optim.D.args={betas: [0.5]}"], ["optim.D.args", "set optim.D.betas"]),
    "width": (["model.g_widths=[4611686018427387904]"], ["model.g_widths=4611686018427387904", "1,048,576"]),
    "latent": (["model.z_dim=9223372036854775807"], ["model.z_dim=9223372036854775807"]),
    "length": (["train.kimg=1e306"], ["train.kimg=1e+306"]),
    "a word for a list": (["model.d_widths=true"], ["model.d_widths=true must be a list of whole numbers"]),
    "layers": ([f"model.d_widths={[4] * 2000}"], ["model.d_widths has 2000 entries"]),
    "blocks": (
        ["model.name=r3gan", "data.image_size=16", "model.d_args={blocks: 1000000000}"],
        ["model.d_args: blocks=1000000000", "4096"],
    ),
    "groups of nothing": (
        ["model.name=r3gan", "data.image_size=16", "model.g_args={group_size: 0}"],
        ["model.name=r3gan", "ZeroDivisionError"],
    ),
    "negative": (["train.kimg=-1"], ["train.kimg=-1"]),
    "zero": (["train.n_critic=0"], ["train.n_critic=0"]),
    "nan": (["optim.G.lr=nan"], ["optim.G.lr=nan"]),
    "no override": (["train.kimg"], ["train.kimg"]),
    "no such file": (["nowhere.yaml"], ["nowhere.yaml"]),
    "option": (["--kimg"], ["--kimg", "--help"]),
    "two files": (["a.yaml", "b.yaml"], ["a.yaml b.yaml"]),
    "image size": (["data.image_size=64x"], ["data.image_size=64x", "64x96"]),
    "size that the architecture can't make": (
        ["model.name=dcgan", "data.image_size=30"],
        ["model.name=dcgan", "data.image_size=30x30", "nearest: 28"],
    ),
    "widths that do not fit": (
        ["model.name=dcgan", "data.image_size=32", "model.g_widths=[8,8]"],
        ["model.name=dcgan", "3 widths"],
    ),
    "conditional without labels": (
        ["data.name=STL10", "metrics.every_kimg=0"],
        ["model.conditional=true", "data.name=STL10", "model.conditional=false"],
    ),
    "classifier without labels": (
        ["data.name=STL10", "model.conditional=false"],
        ["metrics.extractor=classifier", "metrics.extractor=inception"],
    ),
    "batch larger than the data": (["train.batch_size=1798"], ["train.batch_size=1798", "1797"]),
    "uneven micro-batches": (
        ["train.micro_batch_size=7"],
        ["train.micro_batch_size=7", "divide"],
    ),
    "betas": (["optim.G.betas=[0.5]"], ["optim.G.betas=[0.5]"]),
    "an end without a schedule": (["optim.G.lr_final=1e-5"], ["optim.G.lr_final", "optim.G.schedule=cosine"]),
    "another beta at the end without one": (["optim.D.beta2_final=0.99"], ["optim.D.beta2_final", "schedule"]),
    "decay without a schedule": (["loss.gamma_decay=0.1"], ["loss.gamma_decay", "optim.D.schedule"]),
    "fading without growth": (["growth.fade_kimg=5"], ["growth.fade_kimg", "growth.stable_kimg"]),
    "resume without a run": (["resume=latest"], ["resume=latest", "run.dir"]),
    "interpolation": (["train.kimg=${nothing}"], ["train.kimg=${nothing} must be a number"]),
    "class folders of no folder": (["data.class_folders=true"], ["data.class_folders=true", "data.name=folder"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_gets_one_line_and_status_2(
    mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, expected = MISTAKES[mistake]
    assert main(["train", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    for text in expected:
        assert text in error
    assert not list(tmp_path.iterdir()), "a refused run leaves nothing behind"


@pytest.mark.parametrize("content", ["train: [", "- a\n- b\n", "just text", "train: {kimgs: 3}", "\x00"])
def test_bad_file_gets_one_line_that_names_it(content: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert "bad.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_process_exits_with_2_and_no_traceback(train: Train) -> None:
    result = train("train.kimgs=3")
    assert result.returncode == 2
    assert result.stderr == "gan-dist: error: command line: unknown setting train.kimgs; nearest: train.kimg\n"


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (["loss.name=wasserstein", "loss.r1_gamma=0"], "grows without bound unless the critic is held"),
        (["loss.name=hinge", "loss.label_smoothing=0.1"], "loss.name=hinge has no target to smooth"),
        (
            ["model.name=dcgan", "data.image_size=28", "loss.gradient_penalty=10"],
            "batch normalization in D of model.name=dcgan mixes samples: set model.d_args={batch_norm: false}",
        ),
    ],
)
def test_parts_that_make_no_sense_together(
    settings: list[str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "train.kimg=0.1", "metrics.every_kimg=0", *settings]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["optim: {G: {betas: [[0.5], 0.9]}}", "model: {g_widths: [[4]]}"])
def test_list_in_a_list_of_numbers_gets_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"betas|g_widths"):
        load_config(path)


def test_help_names_every_part_that_there_is() -> None:
    """The schema does not list the parts of a run, but its comments name them, and `--help` shows the comments."""
    comments = {name: comment for name, _, _, comment in walk_settings()}
    parts = {
        "data.name": DATASETS,
        "model.name": names(),
        "loss.name": LOSSES,
        "metrics.extractor": EXTRACTORS,
        "train.augment": AUGMENTATIONS,
    }
    for setting, there_are in parts.items():
        assert [name for name in there_are if not re.search(rf"\b{name}\b", comments[setting])] == [], setting


def test_config_of_the_run_is_taken_where_it_goes_on(tmp_path: Path) -> None:
    saved = load_config(None, ["train.batch_size=17", "train.kimg=5"])
    (tmp_path / "config.yaml").write_text(as_yaml(saved))
    place = f"run.dir={tmp_path}"
    for resume in ("auto", "latest"):
        config = read_config([place, f"resume={resume}", "train.kimg=6"])
        assert (config.train.batch_size, config.train.kimg) == (17, 6)
    assert read_config([place, "train.kimg=6"]).train.batch_size == 64, "a new run"


def test_message_is_one_line_that_a_terminal_can_show() -> None:
    assert str(UserError("a\nb\t  c\x1b[31m\u202ed")) == r"a b c\x1b[31m\u202ed"
