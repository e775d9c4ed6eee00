"""SNGAN (Miyato et al. 2018, "Spectral normalization for generative adversarial networks"), with residual networks.

Conditional networks use conditional batch normalization in G and the projection discriminator as D (Miyato & Koyama
2018, "cGANs with projection discriminator"). Self-attention (Zhang et al. 2019, "Self-attention GANs") is an option.

The networks are those of the papers for images of 32, 64 and 128 pixels. G starts from a map of 4 to 7 pixels a side
(7x7 for images of 28 and 56 pixels) and doubles it with every block. All weights of D have spectral normalization.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gan_dist.models._layers import Embedding, double_nearest, map_sizes, needed, spectral_norm

# The default widths, by how often G doubles its first map: the channels of G's maps, from the first map to the last,
# and the channels of D's blocks.
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
_D_HALVINGS = {2: 2, 3: 2, 4: 5, 5: 5}  # so many of D's first blocks halve their map


def check(image_shape: tuple[int, int, int], g_widths: Sequence[int] = (), d_widths: Sequence[int] = ()) -> None:
    """Check that images are square, of 16 to 128 pixels a side, and that there are as many widths as in the default.

    Raises:
        ValueError: they are not; the message names the nearest possible size or the default widths.
    """
    doublings = len(map_sizes(image_shape, largest=128)) - 1
    for widths, default in ((g_widths, _G_WIDTHS[doublings]), (d_widths, _D_WIDTHS[doublings])):
        if widths and len(widths) != len(default):
            raise ValueError(
                f"needs {len(default)} widths for {image_shape[1]} pixels, for example {default}, not {len(widths)}"
            )


def _initialise(module: nn.Module) -> None:
    """Draw weights by Xavier's uniform rule, times sqrt(2) for 3x3 convolutions (the paper's code); set biases to 0."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight, 2**0.5 if module.weight.shape[2:] == (3, 3) else 1.0)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class _Normalise(nn.Module):
    """Batch normalization of x (N, C, H, W). If there are classes, each class has its own scale and shift."""

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
    """Residual block of G, which doubles the map: norm, ReLU, double, conv, norm, ReLU, conv (the paper's figure 9a).

    The convolutions have no biases, because the next normalization would subtract them.
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
    """Residual block of D: ReLU, conv, ReLU, conv (the paper's figure 9b).

    If the block `halves` the map, 2x2 average pooling follows. The input of the `first` block is an image, so this
    block has no ReLU before its first convolution.
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
        # Average pooling and a 1x1 convolution can change places without changing the result. Pooling first is cheaper.
        return F.avg_pool2d(h, 2) + self.shortcut(F.avg_pool2d(x, 2))


class Attention(nn.Module):
    """Self-attention between the pixels of a map: x (N, C, H, W) -> same shape (Zhang et al. 2019, section 3).

    As in the paper's code, 2x2 max pooling is applied to keys and values, and `gamma`, the weight of the attention,
    starts at 0.
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
    """G: latents z (N, z_dim) and labels y (N,) -> images (N, C, H, W) in [-1, 1].

    Args:
        image_shape: (C, H, W).
        num_classes: number of classes; 0 for an unconditional G.
        z_dim: size of the latent z.
        widths: channels of the maps, from the smallest map to the largest.
        attention: height in pixels of the map to which self-attention is applied; 0 for none.

    Raises:
        ValueError: see `check`; or G has no map of the height `attention`.
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
        nn.init.xavier_uniform_(self.last.weight)  # without the factor sqrt(2): this layer is in no residual branch
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
    """D: images x (N, C, H, W) and labels y (N,) -> logits (N,).

    With phi(x) the features of the last block, summed over all pixels, psi a linear layer and v_y the embedding of the
    label y, the logit is psi(phi(x)) + <v_y, phi(x)> (projection discriminator: Miyato & Koyama 2018, equation 5). An
    unconditional D has only the first term.

    Args:
        image_shape: (C, H, W).
        num_classes: number of classes; 0 for an unconditional D.
        widths: channels of the blocks, from the first block to the last.
        attention: height in pixels of the map to which self-attention is applied; 0 for none.

    Raises:
        ValueError: see `check`; or D has no map of the height `attention`.
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

    def freezable(self) -> list[nn.Module]:
        """Return the residual blocks of D, from the image on, with attention where it follows."""
        found: list[nn.Module] = [*self.blocks]
        if self.attention_after is not None:
            found[self.attention_after] = nn.ModuleList([found[self.attention_after], self.attention])
        return found


def _check_attention(attention: int, sizes: Sequence[int]) -> None:
    if attention and attention not in sizes:
        raise ValueError(f"can apply attention to maps of {', '.join(map(str, sizes))} pixels, not of {attention}")
