"""The fully connected GAN (Goodfellow et al. 2014) and its conditional form (Mirza & Osindero 2014).

G: z and label -> 256 -> 512 -> 1024 -> image, tanh. D: image and label -> 512 -> 256 -> logit. LeakyReLU of slope 0.2
between. Makes any image shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from gan_dist.models._layers import join_label


def check(image_shape: tuple[int, int, int], g_widths: Sequence[int] = (), d_widths: Sequence[int] = ()) -> None:
    """Any shape and any widths will do."""


def _layers(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers between the given sizes, with LeakyReLU between them but not after the last."""
    modules: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        modules += [nn.Linear(inputs, outputs), nn.LeakyReLU(0.2, inplace=True)]
    return nn.Sequential(*modules[:-1])


class Generator(nn.Module):
    """z (N, z_dim), y (N,) -> images (N, C, H, W) in [-1, 1]; anywhere, for points, without the `tanh`."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        z_dim: int,
        widths: Sequence[int] = (),
        *,
        tanh: bool = True,
    ) -> None:
        super().__init__()
        self.image_shape = image_shape
        self.num_classes = num_classes
        self.z_dim = z_dim
        self.bound = nn.Tanh() if tanh else nn.Identity()
        self.layers = _layers([z_dim + num_classes, *(widths or (256, 512, 1024)), math.prod(image_shape)])

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        return self.bound(self.layers(join_label(z, y, self.num_classes))).unflatten(1, self.image_shape)


class Discriminator(nn.Module):
    """x (N, C, H, W), y (N,) -> logits (N,)."""

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int, widths: Sequence[int] = ()) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.layers = _layers([math.prod(image_shape) + num_classes, *(widths or (512, 256)), 1])

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self.layers(join_label(x.flatten(1), y, self.num_classes)).squeeze(1)
