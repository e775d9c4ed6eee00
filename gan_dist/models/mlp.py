"""The fully connected GAN (Goodfellow et al. 2014) and its conditional form (Mirza & Osindero 2014).

G: z and label -> 256 -> 512 -> 1024 -> image, tanh. D: image and label -> 512 -> 256 -> logit. The activation between
linear layers is LeakyReLU with slope 0.2. Any image shape is possible.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from gan_dist.models._layers import join_label


def check(image_shape: tuple[int, int, int], g_widths: Sequence[int] = (), d_widths: Sequence[int] = ()) -> None:
    """Accept every image shape and all widths: this architecture has no limits."""


def _layers(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers from each of the sizes to the next one, with LeakyReLU after every layer except the last."""
    modules: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        modules += [nn.Linear(inputs, outputs), nn.LeakyReLU(0.2, inplace=True)]
    return nn.Sequential(*modules[:-1])


class Generator(nn.Module):
    """G: latents z (N, z_dim) and labels y (N,) -> images (N, C, H, W) in [-1, 1].

    Args:
        image_shape: (C, H, W).
        num_classes: number of classes; 0 for an unconditional G.
        z_dim: size of the latent z.
        widths: sizes of the hidden layers; by default 256, 512, 1024.
        tanh: end with tanh. Without it the values are not limited to [-1, 1], which data sets of points need.
    """

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
    """D: images x (N, C, H, W) and labels y (N,) -> logits (N,).

    Args:
        image_shape: (C, H, W).
        num_classes: number of classes; 0 for an unconditional D.
        widths: sizes of the hidden layers; by default 512, 256.
    """

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int, widths: Sequence[int] = ()) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.layers = _layers([math.prod(image_shape) + num_classes, *(widths or (512, 256)), 1])

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self.layers(join_label(x.flatten(1), y, self.num_classes)).squeeze(1)

    def freezable(self) -> list[nn.Module]:
        """Return the blocks of D before its last layer, from the image on: its hidden layers."""
        layers: list[nn.Module] = [layer for layer in self.layers if isinstance(layer, nn.Linear)]
        return layers[:-1]
