"""Runs of every format (`tests/old_runs/`) can be sampled, and training goes on from them; newer ones are refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Train, run_here
from PIL import Image
from safetensors.torch import load_file, save

import gan_dist
from gan_dist.checkpoint import formats
from gan_dist.checkpoint.formats import MIGRATIONS, Migration, format_of, migrated
from gan_dist.data.in_memory import ImageTensor
from gan_dist.data.key import old_key
from gan_dist.errors import UserError
from gan_dist.settings.config import load_config

RUNS = {"digits": (1, 8, 8), "growing": (1, 16, 16), "philox": (1, 8, 8), "splitmix": (1, 8, 8), "today": (1, 8, 8)}


@pytest.mark.parametrize("name", RUNS)
def test_generator_of_an_old_run_makes_images(name: str) -> None:
    G = gan_dist.load_generator(ROOT / "tests/old_runs" / name)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(4, 8, generator=generator)
    images = G(z, torch.arange(4)) if G.num_classes else G(z)
    assert images.shape == (4, *RUNS[name])
    assert images.std() > 0


@pytest.mark.parametrize("name", RUNS)
def test_training_goes_on_from_an_old_run(name: str, train: Train, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "tests/old_runs" / name, tmp_path / name)
    run = train(f"run.dir={name}", "resume=latest", "train.kimg=0.112", tiny=False)
    assert run.returncode == 0, run.stderr
    lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
    assert [line["kimg"] for line in lines] == [0.016, 0.032, 0.048, 0.064, 0.08, 0.096, 0.112]
    old = "random generator was Philox and is SplitMix64"
    assert (old in run.stdout) == (name in ("digits", "growing", "philox")), "it does not go on with the same draws"


def _rewrite(checkpoint: Path, name: str, content: bytes) -> None:
    """Change a file of a checkpoint, and its entry in the manifest."""
    (checkpoint / name).write_bytes(content)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest[name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def _copy(name: str, folder: Path) -> Path:
    """Copy a run; returns its checkpoint."""
    shutil.copytree(ROOT / "tests/old_runs" / name, folder / name)
    return folder / name / "checkpoints/000000000080"


@pytest.mark.parametrize("name", RUNS)
def test_every_format_is_here_and_migrated_to_today(name: str) -> None:
    checkpoint = ROOT / "tests/old_runs" / name / "checkpoints/000000000080"
    state = json.loads((checkpoint / "state.json").read_text())
    assert format_of(state, checkpoint) == {"philox": 2, "splitmix": 3, "today": 4}.get(name, 1)
    today = json.loads((ROOT / "tests/old_runs/today/checkpoints/000000000080/state.json").read_text())
    assert migrated(state, checkpoint).keys() | {"format"} == today.keys()
    assert len(MIGRATIONS) + 1 == formats.FORMAT == 4
    old = load_config(checkpoint / "config.yaml", of_run=True)
    assert old.train.cuda_graphs == ("auto" if name in ("splitmix", "today") else "never"), "none was captured then"


def test_newer_state_is_refused_in_one_line(train: Train, tmp_path: Path) -> None:
    checkpoint = _copy("today", tmp_path)
    state = json.loads((checkpoint / "state.json").read_text())
    _rewrite(checkpoint, "state.json", json.dumps({**state, "format": 5}).encode())
    for result in (train("run.dir=today", "resume=latest", tiny=False), run_here(tmp_path, "sample", "today")):
        assert result.returncode
        assert result.stderr.count("\n") == 1
        assert (
            "a newer version of gan_dist has written it, in format 5; this version reads formats up to 4"
            in result.stderr
        )
    assert (checkpoint / "state.json").exists(), "nothing is deleted or set aside"


def test_newer_settings_are_refused_in_one_line(train: Train, tmp_path: Path) -> None:
    _copy("today", tmp_path)
    path = tmp_path / "today/config.yaml"
    path.write_text(path.read_text().replace("format: 2", "format: 3"))
    result = train("run.dir=today", "resume=latest", tiny=False)
    assert result.returncode
    assert result.stderr.count("\n") == 1
    assert (
        "a newer version of gan_dist has written it, in format 3; this version reads formats up to 2" in result.stderr
    )


@pytest.mark.parametrize("number", ["0", "-1", "1.5", "new", "[1]"])
def test_format_that_is_none_is_refused(number: str, train: Train, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(f"format: {number}\n")
    result = train("own.yaml", tiny=False)
    assert result.returncode == 2
    assert result.stderr.endswith("own.yaml: format must be a whole number, which a run writes\n")


def test_old_word_is_refused_with_the_new_one(train: Train, tmp_path: Path) -> None:
    """On the command line and in a user's file; in a run's own settings it is renamed."""
    (tmp_path / "own.yaml").write_text("loss: {r1_interval: 4}\n")
    new = "loss.r1_interval is called loss.penalty_interval now: write loss.penalty_interval=4"
    for arguments in (["loss.r1_interval=4"], ["own.yaml"]):
        result = train(*arguments, tiny=False)
        assert result.returncode == 2
        assert result.stderr.count("\n") == 1
        assert new in result.stderr
    assert load_config(tmp_path / "own.yaml", of_run=True).loss.penalty_interval == 4


def test_tensors_are_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a migration of the future, which calls G's first layers by another name."""
    renamed = {"first.weight": "layers.0.weight"}
    checkpoint = _copy("today", tmp_path)
    tensors = {name: tensor.clone() for name, tensor in load_file(checkpoint / "G_ema.safetensors").items()}
    old = {next((k for k, v in renamed.items() if v == name), name): tensor for name, tensor in tensors.items()}
    _rewrite(checkpoint, "G_ema.safetensors", save(old))
    with pytest.raises(UserError, match="does not fit the config"):
        gan_dist.load_generator(tmp_path / "today")
    migration = Migration(dict, lambda _, tensors: {renamed.get(name, name): t for name, t in tensors.items()})
    monkeypatch.setattr(formats, "MIGRATIONS", [*MIGRATIONS, migration])
    G = gan_dist.load_generator(tmp_path / "today")
    assert torch.equal(G.state_dict()["layers.0.weight"], tensors["layers.0.weight"])


def test_old_run_on_numbered_folders_keeps_the_order_of_its_classes(train: Train, tmp_path: Path) -> None:
    """Earlier versions sorted the folders as text, and did not record the names."""
    for number in range(12):
        for i in range(6):
            path = tmp_path / f"images/{number}/{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 20 * number + i).save(path)
    folder = ["data.name=folder", "data.root=images", "data.image_size=8", "data.channels=1", "data.class_folders=true"]
    assert train(*folder, "run.dir=run", "train.kimg=0.064", "sample.every_kimg=0").returncode == 0
    as_text = sorted(str(number) for number in range(12))
    pixels = torch.tensor([20 * int(name) + i for name in as_text for i in range(6)], dtype=torch.uint8)
    dataset = ImageTensor(pixels[:, None, None, None].expand(-1, 1, 8, 8), torch.arange(12).repeat_interleave(6))
    checkpoint = tmp_path / "run/checkpoints/000000000064"
    state = json.loads((checkpoint / "state.json").read_text())
    del state["class_names"], state["unreadable"], state["format"]
    _rewrite(checkpoint, "state.json", json.dumps({**state, "data_key": old_key(dataset, 12)}).encode())
    result = train("run.dir=run", "resume=latest", "train.kimg=0.128", tiny=False)
    assert result.returncode == 0, result.stderr
    after = json.loads((tmp_path / "run/checkpoints/000000000128/state.json").read_text())
    assert after["class_names"] == as_text
