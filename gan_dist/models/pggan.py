"""PGGAN (Karras et al. 2018, "Progressive growing of GANs for improved quality, stability, and variation").

Both networks grow from a map of 4x4 (7x7 for 28 and 56 pixels), doubling it stage by stage; a new stage is faded in.
With equalised learning rates, pixel normalization in G and the standard deviation over a minibatch in D (sections 2
to 4 of the paper; channels as in its table 2). The label, if any, is joined to z in G and to the image in D.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gan_dist.models import Growing
from gan_dist.models._layers import MinibatchStd, double_nearest, join_label, map_sizes


def check(image_shape: tuple[int, int, int], g_widths: Sequence[int] = (), d_widths: Sequence[int] = ()) -> None:
    """Square images of 16 to 1024 pixels, and one width for each size of map, from the first to the image's.

    Raises:
        ValueError: any other, with the nearest size that can be made.
    """
    sizes = map_sizes(image_shape, largest=1024)
    for widths in (g_widths, d_widths):
        if widths and len(widths) != len(sizes):
            raise ValueError(f"needs {len(sizes)} widths, for maps of {sizes} pixels, not {len(widths)}")


def _own_widths(sizes: Sequence[int]) -> list[int]:
    return [min(512, 16384 // size) for size in sizes]


class Conv(nn.Module):
    """Convolution with an equalised learning rate: weights N(0, 1), scaled by gain / sqrt(fan_in) when they are used.

    So every weight is as far from its optimum, in steps of Adam, as any other (section 4.1).
    """

    def __init__(self, inputs: int, outputs: int, size: int, padding: int = 0, gain: float = math.sqrt(2)) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, size, size))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scale, self.padding = gain / math.sqrt(inputs * size**2), padding

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.scale, self.bias, padding=self.padding)


def pixel_norm(x: Tensor) -> Tensor:
    """Each pixel's vector (N, C, …) divided by the root of the mean of its squares (section 4.2)."""
    wide = x if x.dtype == torch.float64 else x.float()  # in half precision 1e-8 is 0
    return (wide * torch.rsqrt(wide.square().mean(1, keepdim=True) + 1e-8)).to(x.dtype)


def _activated(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)


def _normed(x: Tensor) -> Tensor:
    return pixel_norm(_activated(x))


class _Pair(nn.Module):
    """Two convolutions of 3x3, each with its activation."""

    def __init__(self, inputs: int, between: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = Conv(inputs, between, 3, 1), Conv(between, outputs, 3, 1)

    def forward(self, x: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
        return activation(self.conv2(activation(self.conv1(x))))


class Generator(Growing):
    """z (N, z_dim), y (N,) -> images (N, C, H, W) in about [-1, 1].

    In training the images have the size of the stage; otherwise they are enlarged to the whole size. `widths` are the
    channels of the maps, from the first on.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], num_classes: int, z_dim: int, widths: Sequence[int] = ()
    ) -> None:
        check(image_shape, g_widths=widths)
        sizes = map_sizes(image_shape, largest=1024)
        super().__init__(last=len(sizes) - 1)
        self.image_shape = image_shape
        self.num_classes = num_classes
        self.z_dim = z_dim
        widths = widths or _own_widths(sizes)
        # On a single pixel, what the paper's code writes as a dense layer and a reshape.
        self.first = Conv(z_dim + num_classes, widths[0] * sizes[0] ** 2, 1, gain=math.sqrt(2) / 4)
        self.first_shape = (widths[0], sizes[0], sizes[0])
        self.second = Conv(widths[0], widths[0], 3, 1)
        self.blocks = nn.ModuleList(_Pair(a, b, b) for a, b in pairwise(widths))
        self.to_image = nn.ModuleList(Conv(width, image_shape[0], 1, gain=1.0) for width in widths)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        z = join_label(pixel_norm(z), y, self.num_classes)
        x = _normed(self.first(z[:, :, None, None]).flatten(1).unflatten(1, self.first_shape))
        x = smaller = _normed(self.second(x))
        for block in self.blocks[: self.stage]:
            smaller = x
            x = block(double_nearest(x), _normed)
        image = self.to_image[self.stage](x)
        if self.stage:
            image = torch.lerp(
                double_nearest(self.to_image[self.stage - 1](smaller)), image, self.alpha.to(image.dtype)
            )
        return image if self.training else F.interpolate(image, size=self.image_shape[1:], mode="nearest")

    def unused(self) -> Iterator[nn.Parameter]:
        yield from self.blocks[self.stage :].parameters()
        for i, layer in enumerate(self.to_image):
            if i not in (self.stage, self.stage - 1):
                yield from layer.parameters()


class Discriminator(Growing):
    """x (N, C, H, W) of the stage's size, y (N,) -> logits (N,).

    `widths` are the channels of the maps, from the image's on.
    """

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int, widths: Sequence[int] = ()) -> None:
        check(image_shape, d_widths=widths)
        sizes = map_sizes(image_shape, largest=1024)
        super().__init__(last=len(sizes) - 1)
        self.num_classes = num_classes
        widths = list(widths)[::-1] or _own_widths(sizes)  # of each stage, as in G
        self.from_image = nn.ModuleList(Conv(image_shape[0] + num_classes, width, 1) for width in widths)
        self.blocks = nn.ModuleList(_Pair(b, b, a) for a, b in pairwise(widths))
        self.deviation = MinibatchStd()
        self.second = Conv(widths[0] + 1, widths[0], 3, 1)
        self.third = Conv(widths[0], widths[0], sizes[0])
        self.last = Conv(widths[0], 1, 1, gain=1.0)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        image = join_label(x, y, self.num_classes)
        x = _activated(self.from_image[self.stage](image))
        for i in reversed(range(self.stage)):
            x = F.avg_pool2d(self.blocks[i](x, _activated), 2)
            if i == self.stage - 1:
                coarse = _activated(self.from_image[i](F.avg_pool2d(image, 2)))
                x = torch.lerp(coarse, x, self.alpha.to(x.dtype))
        x = _activated(self.second(self.deviation(x)))
        return self.last(_activated(self.third(x))).flatten()

    def unused(self) -> Iterator[nn.Parameter]:
        yield from self.blocks[self.stage :].parameters()
        for i, layer in enumerate(self.from_image):
            if i not in (self.stage, self.stage - 1):
                yield from layer.parameters()
