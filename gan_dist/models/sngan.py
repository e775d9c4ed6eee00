"""SNGAN (Miyato et al. 2018, "Spectral normalization for generative adversarial networks"): residual networks.

With labels: conditional batch normalization in G, and the projection discriminator (Miyato & Koyama 2018, "cGANs with
projection discriminator"). As an option, self-attention (Zhang et al. 2019, "Self-attention GANs").

The networks are those of the papers for 32, 64 and 128 pixels: G starts from a map of 4x4 (7x7 for 28 and 56 pixels)
and doubles it with every block; all weights of D are spectrally normalised.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gan_dist.models._layers import Embedding, double_nearest, map_sizes, needed, spectral_norm

# Channels by the number of doublings: of G's maps, from the first on, and of D's blocks.
_G_WIDTHS = {
    2: [256, 256, 256],
    3: [256, 256, 256, 256],
    4: [1024, 512, 256, 128, 64],
    5: [1024, 1024, 512, 256, 128, 64],
}
_D_WIDTHS = {
    2: [128, 128, 128, 128],
    3: [128, 128, 128, 128],
    4: [64, 128, 256, 512, 1024],
    5: [64, 128, 256, 512, 1024, 1024],
}
_D_HALVINGS = {2: 2, 3: 2, 4: 5, 5: 5}  # blocks of D that halve their map, from the first on


def check(image_shape: tuple[int, int, int], g_widths: Sequence[int] = (), d_widths: Sequence[int] = ()) -> None:
    """Square images of 16 to 128 pixels; as many widths as the paper's networks have.

    Raises:
        ValueError: any other, with the nearest that can be made.
    """
    doublings = len(map_sizes(image_shape, largest=128)) - 1
    for widths, own in ((g_widths, _G_WIDTHS[doublings]), (d_widths, _D_WIDTHS[doublings])):
        if widths and len(widths) != len(own):
            raise ValueError(f"needs {len(own)} widths for {image_shape[1]} pixels, as in {own}, not {len(widths)}")


def _initialise(module: nn.Module) -> None:
    """Xavier's uniform weights, biases 0; larger by sqrt(2) on residual branches, as in the paper's code."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight, 2**0.5 if module.weight.shape[2:] == (3, 3) else 1.0)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class _Normalise(nn.Module):
    """Batch normalization of x (N, C, H, W), with scale and shift of each class, if there are classes."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=not num_classes)
        if num_classes:
            self.scale = Embedding(num_classes, channels, _weight=torch.ones(num_classes, channels))
            self.shift = Embedding(num_classes, channels, _weight=torch.zeros(num_classes, channels))

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        x = self.norm(x)
        if self.norm.affine:
            return x
        scale, shift = (embedding(y)[:, :, None, None].to(x.dtype) for embedding in (self.scale, self.shift))
        return x * scale + shift


class _Up(nn.Module):
    """Residual block that doubles the map (figure 9a of the paper): norm, ReLU, double, conv, norm, ReLU, conv.

    Without biases: the next normalization would take them out again.
    """

    def __init__(self, inputs: int, outputs: int, num_classes: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = _Normalise(inputs, num_classes), _Normalise(outputs, num_classes)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        h = self.conv1(double_nearest(F.relu(self.norm1(x, y))))
        h = self.conv2(F.relu(self.norm2(h, y)))
        return h + self.shortcut(double_nearest(x))


class _Down(nn.Module):
    """Residual block of D (figure 9b): ReLU, conv, ReLU, conv, and the mean of 2x2 pixels if it `halves` the map.

    The `first` block sees an image: no ReLU before it, and its shortcut halves before it convolves.
    """

    def __init__(self, inputs: int, outputs: int, halves: bool, first: bool) -> None:
        super().__init__()
        self.halves, self.first = halves, first
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if halves or inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.relu(self.conv1(x if self.first else F.relu(x))))
        if not self.halves:
            return h + self.shortcut(x)
        # The mean and a convolution of 1x1 commute; this order is the cheaper one.
        return F.avg_pool2d(h, 2) + self.shortcut(F.avg_pool2d(x, 2))


class Attention(nn.Module):
    """Self-attention over the places of a map, x (N, C, H, W) -> the same (Zhang et al. 2019, section 3).

    Keys and values are those of maps halved by maximum, and `gamma` starts at 0, as in the paper's code.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, max(1, channels // 8), 1, bias=False)
        self.key = nn.Conv2d(channels, max(1, channels // 8), 1, bias=False)
        self.value = nn.Conv2d(channels, channels // 2, 1, bias=False)
        self.out = nn.Conv2d(channels // 2, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        q = self.query(x).flatten(2).mT  # (N, HW, C/8)
        k, v = (F.max_pool2d(conv(x), 2).flatten(2).mT for conv in (self.key, self.value))  # (N, HW/4, …)
        weights = torch.softmax(q @ k.mT, dim=-1)
        return x + self.gamma * self.out((weights @ v).mT.unflatten(2, x.shape[2:]))


class Generator(nn.Module):
    """z (N, z_dim), y (N,) -> images (N, C, H, W) in [-1, 1].

    `widths` are the channels of the maps, from the first on; `attention` is the size of the map with self-attention.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        z_dim: int,
        widths: Sequence[int] = (),
        *,
        attention: int = 0,
    ) -> None:
        super().__init__()
        check(image_shape, g_widths=widths)
        self.image_shape = image_shape
        self.num_classes = num_classes
        self.z_dim = z_dim
        sizes = map_sizes(image_shape)
        _check_attention(attention, sizes[1:])
        widths = widths or _G_WIDTHS[len(sizes) - 1]
        self.first = nn.Linear(z_dim, widths[0] * sizes[0] ** 2)
        self.first_shape = (widths[0], sizes[0], sizes[0])
        self.blocks = nn.ModuleList(_Up(a, b, num_classes) for a, b in pairwise(widths))
        self.norm = nn.BatchNorm2d(widths[-1])
        self.last = nn.Conv2d(widths[-1], image_shape[0], 3, padding=1)
        self.apply(_initialise)
        nn.init.xavier_uniform_(self.last.weight)  # it is on no branch
        self.attention_after = sizes.index(attention) - 1 if attention else None
        if self.attention_after is not None:
            self.attention = Attention(widths[sizes.index(attention)])

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        if self.num_classes:
            y = needed(y, self.num_classes)
        x = self.first(z).unflatten(1, self.first_shape)
        for i, block in enumerate(self.blocks):
            x = block(x, y)
            if i == self.attention_after:
                x = self.attention(x)
        return torch.tanh(self.last(F.relu(self.norm(x))))


class Discriminator(nn.Module):
    """x (N, C, H, W), y (N,) -> logits (N,): psi(phi(x)) + <v_y, phi(x)> (Miyato & Koyama 2018, equation 5).

    `widths` are the channels of the blocks; `attention` is the size of the map that has self-attention.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        widths: Sequence[int] = (),
        *,
        attention: int = 0,
    ) -> None:
        super().__init__()
        check(image_shape, d_widths=widths)
        self.num_classes = num_classes
        doublings = len(map_sizes(image_shape)) - 1
        widths, halvings = widths or _D_WIDTHS[doublings], _D_HALVINGS[doublings]
        sizes = [image_shape[1] // 2 ** (i + 1) for i in range(halvings)]
        _check_attention(attention, sizes)
        inputs = [image_shape[0], *widths]
        self.blocks = nn.ModuleList(
            _Down(a, b, halves=i < halvings, first=i == 0) for i, (a, b) in enumerate(zip(inputs, widths))
        )
        self.last = nn.Linear(widths[-1], 1)
        self.apply(_initialise)
        self.attention_after = sizes.index(attention) if attention else None
        if self.attention_after is not None:
            self.attention = Attention(widths[self.attention_after])
        if num_classes:
            self.embedding = Embedding(num_classes, widths[-1])
            nn.init.xavier_uniform_(self.embedding.weight)
        for module in [*self.modules()]:
            if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding):
                spectral_norm(module)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i == self.attention_after:
                x = self.attention(x)
        features = F.relu(x).sum((2, 3))
        logits = self.last(features).squeeze(1)
        if self.num_classes:
            logits = logits + (self.embedding(needed(y, self.num_classes)) * features).sum(1)
        return logits


def _check_attention(attention: int, sizes: Sequence[int]) -> None:
    if attention and attention not in sizes:
        raise ValueError(f"has maps of {', '.join(map(str, sizes))} pixels for attention, not of {attention}")
