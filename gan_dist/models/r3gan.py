"""R3GAN (Huang et al. 2024, "The GAN is dead; long live the GAN! A modern GAN baseline"): the modern baseline.

Both networks are stages of residual blocks with grouped convolutions, no normalization layer, initialised so that the
sum of all branches keeps its variance (Zhang et al. 2019, "Fixup initialization"). Maps double in G and halve in D
through the filter [1, 3, 3, 1]. To be trained with the relativistic loss, R1 and R2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gan_dist.kernels.resampling import double, halve
from gan_dist.models._layers import Embedding, map_sizes, needed

SLOPE = 0.2
EXPANSION = 2  # of a block's channels between its outer convolutions


def check(image_shape: tuple[int, int, int], g_widths: Sequence[int] = (), d_widths: Sequence[int] = ()) -> None:
    """Square images of 16 to 256 pixels, and one width for each size of map, from the first to the image's.

    Raises:
        ValueError: any other, with the nearest size that can be made.
    """
    sizes = map_sizes(image_shape)
    for widths in (g_widths, d_widths):
        if widths and len(widths) != len(sizes):
            raise ValueError(f"needs {len(sizes)} widths, for maps of {sizes} pixels, not {len(widths)}")


def _own_widths(sizes: Sequence[int]) -> list[int]:
    """The paper's: 768 channels for maps of up to 32 pixels, half as many with each doubling beyond."""
    return [768 if size <= 32 else 768 * 32 // size for size in sizes]


def _normal(weight: Tensor, gain: float = 1.0) -> None:
    """N(0, gain^2 / fan_in)."""
    nn.init.normal_(weight, 0.0, gain / math.sqrt(weight[0].numel()))


def _conv(
    inputs: int, outputs: int, size: int = 1, groups: int = 1, gain: float = 1.0, bias: bool = False
) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, groups=groups, bias=False)
    _normal(conv.weight, gain)
    if bias:
        conv.bias = nn.Parameter(torch.zeros(outputs))
    return conv


class Block(nn.Module):
    """x + W3 s(W2 s(W1 x + b1) + b2), W2 a grouped convolution of 3x3 and the others of 1x1, s = LeakyReLU.

    W3 starts at 0, W1 and W2 with N(0, gain^2 / fan_in), gain = sqrt(2 / (1 + 0.2^2)) L^(-1/4) in a network of L blocks
    (Zhang et al. 2019, section 3, for branches of 3 layers).
    """

    def __init__(self, channels: int, num_blocks: int, group_size: int) -> None:
        super().__init__()
        inner = EXPANSION * channels
        if inner % group_size:
            raise ValueError(f"has blocks of {inner} channels inside, which don't divide by group_size={group_size}")
        gain = math.sqrt(2 / (1 + SLOPE**2)) * num_blocks**-0.25
        self.conv1 = _conv(channels, inner, gain=gain, bias=True)
        self.conv2 = _conv(inner, inner, 3, inner // group_size, gain, bias=True)
        self.conv3 = _conv(inner, channels, gain=0.0)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.conv1(x), SLOPE, inplace=True)
        h = F.leaky_relu(self.conv2(h), SLOPE, inplace=True)
        return x + self.conv3(h)


class _Stages(nn.Module):
    """Blocks of each stage, and the convolutions of 1x1 between stages of different widths."""

    def __init__(self, widths: Sequence[int], blocks: int, group_size: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(width, blocks * len(widths), group_size) for _ in range(blocks))) for width in widths
        )
        self.between = nn.ModuleList(nn.Identity() if a == b else _conv(a, b) for a, b in pairwise(widths))


class Generator(nn.Module):
    """z (N, z_dim), y (N,) -> images (N, C, H, W) in about [-1, 1].

    `widths` are the channels of the stages, from the first map on. Each stage has as many `blocks`; their grouped
    convolutions have `group_size` channels a group.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        z_dim: int,
        widths: Sequence[int] = (),
        *,
        blocks: int = 2,
        group_size: int = 16,
    ) -> None:
        super().__init__()
        check(image_shape, g_widths=widths)
        self.image_shape = image_shape
        self.num_classes = num_classes
        self.z_dim = z_dim
        sizes = map_sizes(image_shape)
        widths = widths or _own_widths(sizes)
        self.basis = nn.Parameter(torch.randn(widths[0], sizes[0], sizes[0]))
        self.first = nn.Linear(z_dim * (2 if num_classes else 1), widths[0], bias=False)
        _normal(self.first.weight)
        self.main = _Stages(widths, blocks, group_size)
        self.last = _conv(widths[-1], image_shape[0])
        if num_classes:
            self.embedding = Embedding(num_classes, z_dim)
            nn.init.normal_(self.embedding.weight, 0.0, num_classes**-0.5)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        if self.num_classes:
            z = torch.cat([z, self.embedding(needed(y, self.num_classes))], dim=1)
        scale = self.first(z)[:, :, None, None]
        x = self.main.stages[0](self.basis.to(scale.dtype) * scale)
        for between, stage in zip(self.main.between, self.main.stages[1:]):
            x = stage(double(between(x)))
        return self.last(x)


class Discriminator(nn.Module):
    """x (N, C, H, W), y (N,) -> logits (N,); with classes, the product of the features and the class's embedding.

    `widths` are the channels of the stages, from the image on; the rest as for the `Generator`.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        widths: Sequence[int] = (),
        *,
        blocks: int = 2,
        group_size: int = 16,
    ) -> None:
        super().__init__()
        check(image_shape, d_widths=widths)
        self.num_classes = num_classes
        sizes = map_sizes(image_shape)
        widths = widths or _own_widths(sizes)[::-1]
        features = max(widths) if num_classes else 1
        self.first = _conv(image_shape[0], widths[0])
        self.main = _Stages(widths, blocks, group_size)
        self.basis = nn.Parameter(torch.randn(widths[-1], sizes[0], sizes[0]) / sizes[0])
        self.last = nn.Linear(widths[-1], features, bias=False)
        _normal(self.last.weight)
        if num_classes:
            self.embedding = Embedding(num_classes, features)
            nn.init.normal_(self.embedding.weight, 0.0, (features * num_classes) ** -0.5)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        x = self.main.stages[0](self.first(x))
        for between, stage in zip(self.main.between, self.main.stages[1:]):
            x = stage(between(halve(x)))
        features = self.last((x * self.basis).sum((2, 3)))
        if not self.num_classes:
            return features.squeeze(1)
        return (features * self.embedding(needed(y, self.num_classes))).sum(1)
