"""Architectures: shapes, published sizes, initialisation, labels."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from gan_dist import models


@pytest.mark.parametrize("num_classes", [0, 5])
@pytest.mark.parametrize(
    ("name", "image_shape"),
    [
        ("mlp", (1, 28, 28)),
        ("mlp", (3, 6, 10)),
        ("mlp", (4, 8, 8)),
        *[("dcgan", (channels, size, size)) for size in (28, 32, 56, 64, 128) for channels in (1, 3)],
    ],
)
def test_shapes_and_range(name: str, image_shape: tuple[int, int, int], num_classes: int) -> None:
    architecture = models.architecture(name)
    architecture.check(image_shape)
    G = architecture.Generator(image_shape, num_classes, 16)
    D = architecture.Discriminator(image_shape, num_classes)
    y = torch.arange(3) % num_classes if num_classes else None
    x = G(10 * torch.randn(3, 16), y)
    assert x.shape == (3, *image_shape)
    assert x.abs().max() <= 1
    assert D(x, y).shape == (3,)
    assert (G.image_shape, G.num_classes, G.z_dim) == (image_shape, num_classes, 16)


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_mlp_has_the_textbook_layers() -> None:
    architecture = models.architecture("mlp")

    def dense(*sizes: int) -> int:
        return sum((a + 1) * b for a, b in pairwise(sizes))

    assert _size(architecture.Generator((1, 28, 28), 0, 100)) == dense(100, 256, 512, 1024, 784)
    assert _size(architecture.Discriminator((1, 28, 28), 0)) == dense(784, 512, 256, 1)
    assert _size(architecture.Generator((1, 28, 28), 10, 100)) == dense(110, 256, 512, 1024, 784)
    assert _size(architecture.Discriminator((1, 28, 28), 10)) == dense(794, 512, 256, 1)


def test_dcgan_has_the_published_size() -> None:
    """3,576,704 and 2,765,568 weights for 64x64 RGB in PyTorch's DCGAN example, which leaves out the outer biases."""
    architecture = models.architecture("dcgan")
    assert _size(architecture.Generator((3, 64, 64), 0, 100)) == 3_576_704 + 3
    assert _size(architecture.Discriminator((3, 64, 64), 0)) == 2_765_568 + 64 + 1


def test_dcgan_is_initialised_as_in_the_paper() -> None:
    architecture = models.architecture("dcgan")
    for network in (architecture.Generator((3, 64, 64), 0, 100), architecture.Discriminator((3, 64, 64), 0)):
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                n = module.weight.numel()
                assert module.weight.std().item() == pytest.approx(0.02, rel=5 / (2 * n) ** 0.5)


@pytest.mark.parametrize("name", models.names())
def test_label_matters_and_must_be_given(name: str) -> None:
    architecture = models.architecture(name)
    G = architecture.Generator((1, 28, 28), 3, 8).eval()
    D = architecture.Discriminator((1, 28, 28), 3).eval()
    z, y = torch.randn(1, 8), torch.tensor([0])
    x = G(z, y)
    assert not torch.equal(x, G(z, y + 1))
    assert not torch.equal(D(x, y), D(x, y + 1))
    for network, inputs in ((G, z), (D, x)):
        with pytest.raises(TypeError, match="conditional on 3 classes"):
            network(inputs)


@pytest.mark.parametrize("shape", [(1, 30, 30), (3, 32, 64), (3, 8, 8)])
def test_dcgan_says_what_it_can_make(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="nearest"):
        models.architecture("dcgan").check(shape)
