"""Tests of points in the plane: the data, their metrics, and a run on them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Train
from PIL import Image

from gan_dist.cli import main
from gan_dist.data.points import STD, make_points, modes
from gan_dist.metrics.points import coverage
from gan_dist.report.scatter import scatter_picture


@pytest.mark.parametrize(("name", "count", "nearest"), [("ring", 8, 4 * math.sin(math.pi / 8)), ("grid", 25, 2.0)])
def test_mixtures(name: str, count: int, nearest: float) -> None:
    centres = modes(name)
    assert centres.shape == (count, 2)
    assert torch.pdist(centres).min().item() == pytest.approx(nearest, rel=1e-5)
    x, y = make_points(name)
    assert x.shape == (100_000, 2, 1, 1)
    spread = x.flatten(1) - centres[y]
    torch.testing.assert_close(spread.std(0), torch.full((2,), STD[name]), rtol=0.02, atol=0)
    torch.testing.assert_close(spread.mean(0), torch.zeros(2), rtol=0, atol=5 * STD[name] / 100_000**0.5)
    share = torch.bincount(y, minlength=count) / len(y)
    assert (share - 1 / count).abs().max() < 5 * (1 / count / len(y)) ** 0.5


@pytest.mark.parametrize("name", ["ring", "grid"])
def test_exact_samples_cover_everything(name: str) -> None:
    found, quality = coverage(make_points(name)[0].flatten(1), modes(name), STD[name])
    assert found == len(modes(name))
    assert quality == pytest.approx(1 - math.exp(-9 / 2), abs=1e-3)


def test_coverage_by_hand() -> None:
    points = torch.tensor([[0.0, 0.0], [0.1, 0.1], [2.0, 0.149], [2.0, 0.151], [1.0, 1.0], [50.0, 0.0]])
    assert coverage(points, modes("grid"), 0.05) == (2, 0.5)


def test_picture_shows_points_and_modes() -> None:
    empty = scatter_picture(torch.full((1, 2), 100.0), modes("grid"))
    full = scatter_picture(make_points("grid")[0].flatten(1)[:500], modes("grid"))
    assert full.dtype == np.uint8
    assert full.shape == (500, 500, 3)
    assert (full != empty).any()


SMALL = ["data.name=grid", "model.conditional=false", "model.g_args={tanh: false}", "metrics.every_kimg=2"]


@pytest.mark.slow
def test_run_on_points(train: Train, tmp_path: Path) -> None:
    result = train("run.dir=run", *SMALL)
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    measured = [line for line in lines if "modes" in line]
    assert [line["kimg"] for line in measured] == [0, 2.016, 4]
    assert all(0 <= line["modes"] <= 25 and 0 <= line["high_quality"] <= 1 for line in measured)
    assert measured[0]["protocol"] == {"data": "grid", "num_generated": 10_000, "seed": 0}
    assert "modes" in result.stdout
    assert Image.open(tmp_path / "run/samples/grid-000004.000.png").size == (500, 500)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (["model.g_args={tanh: true}"], "set model.name=mlp and model.g_args={tanh: false}"),
        (["model.name=dcgan", "model.g_args={}"], "model.name=dcgan with data.image_size=1x1"),
        (["data.image_size=8"], "data.name=grid are points"),
        (["model.g_args={tan: false}"], "unknown argument tan; choose one of tanh"),
        (["model.g_args={tanh: 3}"], "tanh=3 must be"),
    ],
)
def test_what_points_cannot_have_gets_one_line(
    settings: list[str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *SMALL, *settings]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1
