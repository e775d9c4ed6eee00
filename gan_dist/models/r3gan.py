"""R3GAN (Huang et al. 2024, "The GAN is dead; long live the GAN! A modern GAN baseline").

Both networks are stages of residual blocks with grouped convolutions. There is no normalization layer: Fixup
initialization (Zhang et al. 2019) keeps the variance of the features stable instead. Between two stages G doubles its
maps and D halves them with the filter [1, 3, 3, 1]. The paper trains with the relativistic loss, R1 and R2.
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
EXPANSION = 2  # a block has this many times more channels inside than at its input and output


def check(image_shape: tuple[int, int, int], g_widths: Sequence[int] = (), d_widths: Sequence[int] = ()) -> None:
    """Check that images are square, of 16 to 256 pixels a side, and that there is one width per size of map.

    Raises:
        ValueError: they are not; the message names the nearest possible size or the number of widths.
    """
    sizes = map_sizes(image_shape)
    for widths in (g_widths, d_widths):
        if widths and len(widths) != len(sizes):
            raise ValueError(f"needs {len(sizes)} widths, for maps of {sizes} pixels, not {len(widths)}")


def _default_widths(sizes: Sequence[int]) -> list[int]:
    """The paper's widths: 768 channels for maps of up to 32 pixels, then half as many for each doubling of the map."""
    return [768 if size <= 32 else 768 * 32 // size for size in sizes]


def _initialise(weight: Tensor, gain: float = 1.0) -> None:
    """Draw a weight (outputs, …) from N(0, gain^2 / fan_in)."""
    nn.init.normal_(weight, 0.0, gain / math.sqrt(weight[0].numel()))


def _conv(
    inputs: int, outputs: int, size: int = 1, groups: int = 1, gain: float = 1.0, bias: bool = False
) -> nn.Conv2d:
    """A convolution that keeps the size of the map, with weights from N(0, gain^2 / fan_in) and biases 0."""
    conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, groups=groups, bias=False)
    _initialise(conv.weight, gain)
    if bias:
        conv.bias = nn.Parameter(torch.zeros(outputs))
    return conv


class Block(nn.Module):
    """A residual block: x (N, C, H, W) -> x + W3 s(W2 s(W1 x + b1) + b2), of the same shape, with s = LeakyReLU.

    W2 is a grouped 3x3 convolution; W1 and W3 are 1x1 convolutions. In a network of L blocks, W1 and W2 are initialised
    from N(0, gain^2 / fan_in) with gain = sqrt(2 / (1 + 0.2^2)) L^(-1/4), and W3 is initialised with 0 (Fixup: Zhang et
    al. 2019, section 3, for residual branches of 3 layers).

    Raises:
        ValueError: `group_size` does not divide the number of channels inside the block.
    """

    def __init__(self, channels: int, num_blocks: int, group_size: int) -> None:
        super().__init__()
        inner = EXPANSION * channels
        if inner % group_size:
            raise ValueError(f"has {inner} channels inside a block, which group_size={group_size} does not divide")
        gain = math.sqrt(2 / (1 + SLOPE**2)) * num_blocks**-0.25
        self.conv1 = _conv(channels, inner, gain=gain, bias=True)
        self.conv2 = _conv(inner, inner, 3, inner // group_size, gain, bias=True)
        self.conv3 = _conv(inner, channels, gain=0.0)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.conv1(x), SLOPE, inplace=True)
        h = F.leaky_relu(self.conv2(h), SLOPE, inplace=True)
        return x + self.conv3(h)


class _Stages(nn.Module):
    """The blocks of every stage, and a 1x1 convolution wherever two consecutive stages have different widths."""

    def __init__(self, widths: Sequence[int], blocks: int, group_size: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(width, blocks * len(widths), group_size) for _ in range(blocks))) for width in widths
        )
        self.between = nn.ModuleList(nn.Identity() if a == b else _conv(a, b) for a, b in pairwise(widths))


class Generator(nn.Module):
    """G: latents z (N, z_dim) and labels y (N,) -> images (N, C, H, W), about in [-1, 1].

    The first map is a learned map, `basis`, with each channel multiplied by a linear function of z and the label's
    embedding.

    Args:
        image_shape: (C, H, W).
        num_classes: number of classes; 0 for an unconditional G.
        z_dim: size of the latent z.
        widths: channels of the stages, from the smallest map to the largest.
        blocks: residual blocks per stage.
        group_size: channels per group of the grouped convolutions.
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
        widths = widths or _default_widths(sizes)
        self.basis = nn.Parameter(torch.randn(widths[0], sizes[0], sizes[0]))
        self.first = nn.Linear(z_dim * (2 if num_classes else 1), widths[0], bias=False)
        _initialise(self.first.weight)
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
    """D: images x (N, C, H, W) and labels y (N,) -> logits (N,).

    D multiplies its last maps by learned maps, `basis`, and sums each product over all pixels. A linear layer turns
    these sums into the logit. In a conditional D the linear layer turns them into features, and the logit is the inner
    product of these features and the label's embedding.

    Args:
        image_shape: (C, H, W).
        num_classes: number of classes; 0 for an unconditional D.
        widths: channels of the stages, from the largest map to the smallest.
        blocks: residual blocks per stage.
        group_size: channels per group of the grouped convolutions.
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
        widths = widths or _default_widths(sizes)[::-1]
        features = max(widths) if num_classes else 1
        self.first = _conv(image_shape[0], widths[0])
        self.main = _Stages(widths, blocks, group_size)
        self.basis = nn.Parameter(torch.randn(widths[-1], sizes[0], sizes[0]) / sizes[0])
        self.last = nn.Linear(widths[-1], features, bias=False)
        _initialise(self.last.weight)
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

    def freezable(self) -> list[nn.Module]:
        """Return the stages of D, from the image on, each with the convolution before it."""
        return [nn.ModuleList(pair) for pair in zip([self.first, *self.main.between], self.main.stages)]
