"""Images of a trained generator: image i is a function of the seed, i and its class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from torch import Tensor, nn

from gan_dist import rng
from gan_dist.cli import main
from gan_dist.data.in_memory import ImageTensor
from gan_dist.data.preprocess import to_uint8
from gan_dist.parallel.distributed import Distributed
from gan_dist.rng import Purpose
from gan_dist.sampling import BATCH_SIZE, generate, sample_grid
from gan_dist.wiring.kinds.images import real_grid


class _Shown(nn.Module):
    """Images of 32x32 pixels in [-1, 1]: the left half shows the label, the right half the first latent."""

    z_dim, image_shape = 3, (1, 32, 32)

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes, self.weight = num_classes, nn.Parameter(torch.zeros(()))

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        x = z[:, :1, None, None].clamp(-1, 1).repeat(1, 1, 32, 32)
        if y is not None:
            x[..., :16] = (y / 10)[:, None, None, None]
        return x


def _latent(i: int) -> Tensor:
    return to_uint8(rng.latents(5, Purpose.SAMPLE_LATENT, i, 1, 3)[0, 0].clamp(-1, 1))


def test_image_depends_on_its_number_and_class_alone() -> None:
    """Across the ends of the batches in which images are made."""
    count, classes = 2 * BATCH_SIZE + 7, [7, 2, 5]
    images = list(generate(_Shown(10), count, 5, classes))
    assert len(images) == count
    for i, image in enumerate(images):
        assert image.shape == (1, 32, 32)
        assert image[0, 0, 0] == to_uint8(torch.tensor(classes[i % 3] / 10))
        assert image[0, 0, -1] == _latent(i)
    assert all(torch.equal(a, b) for a, b in zip(generate(_Shown(10), 70, 5, classes), images))
    assert [image[0, 0, 0] for image in generate(_Shown(0), 70, 5, [])] == [_latent(i) for i in range(70)]


def test_grid_has_one_class_a_column_and_other_latents_everywhere() -> None:
    picture = sample_grid(_Shown(4), 5, 3, Distributed(cpu=True))
    assert picture.shape == (2 + 3 * 34, 2 + 4 * 34, 1)
    cells = [[picture[2 + 34 * row :, 2 + 34 * column :] for column in range(4)] for row in range(3)]
    for row in range(3):
        assert [cell[31, 0, 0] for cell in cells[row]] == [to_uint8(torch.tensor(label / 10)) for label in range(4)]
        assert [cell[0, 31, 0] for cell in cells[row]] == [_latent(4 * row + column) for column in range(4)]
    plain = sample_grid(_Shown(0), 5, 3, Distributed(cpu=True))
    assert plain.shape == (2 + 3 * 34, 2 + 3 * 34, 1)
    assert np.unique(plain).size > 5


def test_grid_of_real_images_has_one_class_a_column() -> None:
    labels = torch.tensor([2, 0, 2, 1, 0])
    images = (40 * torch.arange(1, 6, dtype=torch.uint8))[:, None, None, None].repeat(1, 1, 32, 32)
    picture = real_grid(ImageTensor(images, labels), 3, 2, seed=0)
    shown = [sorted(int(picture[2 + 34 * row, 2 + 34 * column, 0]) for row in range(2)) for column in range(3)]
    assert shown == [[80, 200], [160, 255], [40, 120]], "white where a class has no more images"


def test_command_follows_its_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(ROOT / "tests/old_runs/digits")

    def sample(name: str, *arguments: str) -> list[np.ndarray]:
        assert main(["sample", run, "--out", str(tmp_path / name), "--n", "3", *arguments]) == 0
        return [np.asarray(Image.open(path)) for path in sorted((tmp_path / name).iterdir())]

    plain = sample("plain")
    assert [image.shape for image in plain] == [(8, 8)] * 3
    assert all(np.array_equal(a, b) for a, b in zip(plain, sample("again", "--seed", "0")))
    assert not any(np.array_equal(a, b) for a, b in zip(plain, sample("other", "--seed", "1")))
    assert np.array_equal(sample("chosen", "--classes", "2,1")[1], plain[1]), "class 1 is the second of all, too"
    capsys.readouterr()
    assert main(["sample", run, "--classes", "9,10"]) == 2
    assert "--classes=9,10: 10 is none of the labels 0 to 9" in capsys.readouterr().err
