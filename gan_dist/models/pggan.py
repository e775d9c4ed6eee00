"""PGGAN (Karras et al. 2018, "Progressive growing of GANs for improved quality, stability, and variation").

Training starts with images of 4 to 7 pixels a side (7x7 if the final images have 28 or 56 pixels). Each further stage
doubles the size of the images, and a new stage is faded in (section 2 of the paper). D uses the minibatch standard
deviation (section 3), all layers use the equalised learning rate (section 4.1) and G uses pixel normalization (section
4.2). The default widths are those of table 2. A conditional G gets the label appended to z as a one-hot code, and a
conditional D gets the label appended to the image as one-hot channels.
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
    """Check that images are square, of 16 to 1024 pixels a side, and that there is one width per size of map.

    Raises:
        ValueError: they are not; the message names the nearest possible size or the number of widths.
    """
    sizes = map_sizes(image_shape, largest=1024)
    for widths in (g_widths, d_widths):
        if widths and len(widths) != len(sizes):
            raise ValueError(f"needs {len(sizes)} widths, for maps of {sizes} pixels, not {len(widths)}")


def _default_widths(sizes: Sequence[int]) -> list[int]:
    """The paper's channels for maps of these heights: 512, but fewer for maps of more than 32 pixels (table 2)."""
    return [min(512, 16384 // size) for size in sizes]


class Conv(nn.Module):
    """Convolution with the equalised learning rate: x (N, inputs, H, W) -> (N, outputs, H', W') (section 4.1).

    Weights are initialised from N(0, 1), and every forward pass multiplies them by gain / sqrt(fan_in). All weights
    then have the same scale, so one step of Adam changes each of them by the same share of its size.
    """

    def __init__(self, inputs: int, outputs: int, size: int, padding: int = 0, gain: float = math.sqrt(2)) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, size, size))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scale, self.padding = gain / math.sqrt(inputs * size**2), padding

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.scale, self.bias, padding=self.padding)


def pixel_norm(x: Tensor) -> Tensor:
    """Divide each pixel's vector of channels by its root mean square: x (N, C, …) -> same shape (section 4.2)."""
    wide = x if x.dtype == torch.float64 else x.float()  # fp16 rounds 1e-8 to 0
    return (wide * torch.rsqrt(wide.square().mean(1, keepdim=True) + 1e-8)).to(x.dtype)


def _activated(x: Tensor) -> Tensor:
    """LeakyReLU with slope 0.2."""
    return F.leaky_relu(x, 0.2)


def _normed(x: Tensor) -> Tensor:
    """LeakyReLU with slope 0.2, then pixel normalization."""
    return pixel_norm(_activated(x))


class _Pair(nn.Module):
    """Two 3x3 convolutions, each followed by `activation`: (N, inputs, H, W) -> (N, outputs, H, W)."""

    def __init__(self, inputs: int, between: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = Conv(inputs, between, 3, 1), Conv(between, outputs, 3, 1)

    def forward(self, x: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
        return activation(self.conv2(activation(self.conv1(x))))


class Generator(Growing):
    """G: latents z (N, z_dim) and labels y (N,) -> images (N, C, H, W), about in [-1, 1].

    In training mode the images have the size of the current stage. In eval mode G enlarges them to `image_shape`.

    Args:
        image_shape: (C, H, W) of the last stage.
        num_classes: number of classes; 0 for an unconditional G.
        z_dim: size of the latent z.
        widths: channels of the maps, from the smallest map to the largest.
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
        widths = widths or _default_widths(sizes)
        # A 1x1 convolution of one pixel and a reshape compute what a dense layer and a reshape compute in the paper's
        # code. The gain of sqrt(2) / 4 is that of the paper's code, too.
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
    """D: images x (N, C, H, W) with the size of the current stage, and labels y (N,) -> logits (N,).

    Args:
        image_shape: (C, H, W) of the last stage.
        num_classes: number of classes; 0 for an unconditional D.
        widths: channels of the maps, from the largest map to the smallest.
    """

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int, widths: Sequence[int] = ()) -> None:
        check(image_shape, d_widths=widths)
        sizes = map_sizes(image_shape, largest=1024)
        super().__init__(last=len(sizes) - 1)
        self.num_classes = num_classes
        widths = list(widths)[::-1] or _default_widths(sizes)  # from the smallest map to the largest, as in G
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
