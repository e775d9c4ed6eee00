"""Tests of stacked images: the data, the counting of modes, and a run on them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import Train
from torch import Tensor, nn

from gan_dist.cli import main
from gan_dist.data.datasets import describe, load_dataset
from gan_dist.data.in_memory import ImageTensor
from gan_dist.data.preprocess import images_to_float
from gan_dist.data.stacked import NUM_STACKED
from gan_dist.metrics import Reference
from gan_dist.metrics.stacked import mode_coverage
from gan_dist.parallel.distributed import Distributed
from gan_dist.settings.config import load_config
from gan_dist.settings.schema import Config, Data, Model
from gan_dist.wiring.data import source_of
from gan_dist.wiring.kinds import kind_of


@pytest.fixture(scope="module")
def stacked() -> ImageTensor:
    config = Data(stacked=True)
    dataset = load_dataset(source_of(config), describe(source_of(config)))
    assert isinstance(dataset, ImageTensor)
    return dataset


def test_channels_are_images_and_labels_their_classes(stacked: ImageTensor) -> None:
    plain = load_dataset(source_of(Data()), describe(source_of(Data())))
    assert stacked.images.shape == (NUM_STACKED, 3, 8, 8)
    assert stacked.images.dtype == torch.uint8
    known = {image.numpy().tobytes(): int(label) for image, label in zip(plain.images[:, 0], plain.labels)}
    for i in (0, 1, 99_999):
        digits = [known[channel.numpy().tobytes()] for channel in stacked.images[i]]
        assert digits[0] * 100 + digits[1] * 10 + digits[2] == stacked.labels[i]
    counts = torch.bincount(stacked.labels, minlength=1000)
    assert (counts > 0).all()
    assert (counts - 100).abs().max() < 6 * 10 + 10, "about even: digits themselves are not quite"


def test_coverage_by_hand() -> None:
    p_data = torch.tensor([0.5, 0.25, 0.25])
    assert mode_coverage(torch.tensor([0, 0, 1, 2]), p_data) == (3, 0.0)
    assert mode_coverage(torch.tensor([1, 1]), p_data) == (1, pytest.approx(math.log(4)))
    found, divergence = mode_coverage(torch.tensor([0, 1]), p_data)
    assert (found, divergence) == (2, pytest.approx(0.5 * math.log(2)))


class _Replay(nn.Module):
    """A generator that makes the given images, as many as it is asked for."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.z_dim, self.images, self.next = 1, images_to_float(images), 0
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, z: Tensor) -> Tensor:
        self.next += len(z)
        return self.images[self.next - len(z) : self.next]


@pytest.mark.slow
def test_real_images_have_all_modes_and_one_image_has_one(stacked: ImageTensor) -> None:
    config = Config(data=Data(stacked=True), model=Model(conditional=False))
    config.metrics.num_images = 26_000
    dist = Distributed(cpu=True)
    reference = Reference(stacked, describe(source_of(config.data)), "key", None)
    evaluator = kind_of(config.data).make_evaluator(config, reference, None, dist)
    real = evaluator(_Replay(stacked.images[:26_000]))
    assert real["modes"] == 1000
    assert real["kl"] < 0.03, "999 degrees of freedom over 2 x 26,000 samples make 0.019"
    collapsed = evaluator(_Replay(stacked.images[:1].expand(26_000, -1, -1, -1)))
    share = (stacked.labels == stacked.labels[0]).double().mean().item()
    assert collapsed == {"modes": 1.0, "kl": pytest.approx(-math.log(share), rel=1e-5)}


SMALL = ["data.stacked=true", "model.conditional=false", "metrics.every_kimg=4", "metrics.num_images=300"]


@pytest.mark.slow
def test_run_on_stacked_digits(train: Train, tmp_path: Path) -> None:
    result = train("run.dir=run", *SMALL)
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    measured = [line for line in lines if "modes" in line]
    assert [line["kimg"] for line in measured] == [0, 4]
    assert all(1 <= line["modes"] <= 300 and line["kl"] > 0 for line in measured)
    assert measured[0]["protocol"].items() >= {"num_generated": 300, "num_modes": 1000, "seed": 0}.items()
    again = load_config(tmp_path / "run/config.yaml")
    assert again.data.stacked


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (["data.name=CIFAR10"], "needs grayscale images with labels"),
        (["data.channels=3"], "data.name=digits with data.channels=3"),
        (["model.conditional=true"], "set model.conditional=false"),
    ],
)
def test_what_cannot_be_stacked_gets_one_line(
    settings: list[str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *SMALL, *settings]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1
