"""Runs that an earlier version has written (`tests/old_runs/`) can be sampled, and training goes on from them."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Train
from PIL import Image

import gan_dist
from gan_dist.data.in_memory import ImageTensor
from gan_dist.data.key import old_key

RUNS = {"digits": (1, 8, 8), "growing": (1, 16, 16)}


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
    assert "random generator was Philox and is SplitMix64" in run.stdout, "it does not go on with the same draws"


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
    del state["class_names"], state["unreadable"]
    content = json.dumps({**state, "data_key": old_key(dataset, 12)}).encode()
    (checkpoint / "state.json").write_bytes(content)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["state.json"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    result = train("run.dir=run", "resume=latest", "train.kimg=0.128", tiny=False)
    assert result.returncode == 0, result.stderr
    after = json.loads((tmp_path / "run/checkpoints/000000000128/state.json").read_text())
    assert after["class_names"] == as_text
