"""Layers and functions that several architectures use."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from gan_dist.kernels.lookup import lookup
from gan_dist.kernels.switches import full_precision


def join_label(x: Tensor, y: Tensor | None, num_classes: int) -> Tensor:
    """Append the label as a one-hot code to each vector, or as one-hot channels to each image.

    This is how Mirza & Osindero 2014, "Conditional generative adversarial nets", figure 1, make G and D conditional.

    Args:
        x: vectors (N, D) or images (N, C, H, W).
        y: labels (N,), int64 below `num_classes`.
        num_classes: number of classes; if it is 0, x is returned unchanged.

    Returns:
        (N, D + num_classes) or (N, C + num_classes, H, W).

    Raises:
        TypeError: y is None, but num_classes is not 0.
    """
    if not num_classes:
        return x
    y = needed(y, num_classes)
    code = (y[:, None] == torch.arange(num_classes, device=y.device)).to(x.dtype)  # `one_hot` would read y on the host
    if x.ndim == 4:
        code = code[:, :, None, None].expand(-1, -1, *x.shape[2:])
    return torch.cat([x, code], dim=1)


def needed(y: Tensor | None, num_classes: int) -> Tensor:
    """Return the labels y of a conditional network, or raise an error if the caller has not passed them.

    Raises:
        TypeError: y is None.
    """
    if y is None:
        raise TypeError(f"this network is conditional on {num_classes} classes: pass labels y (N,)")
    return y


def map_sizes(image_shape: tuple[int, int, int], smallest: int = 16, largest: int = 256) -> list[int]:
    """Return the heights of the square feature maps from the first one to the image: for 28 pixels [7, 14, 28].

    Each map is twice as high and wide as the one before it, and the first one has 4 to 7 pixels a side.

    Args:
        image_shape: (C, H, W).
        smallest, largest: limits of the image's height in pixels.

    Raises:
        ValueError: the image is not square, or its height cannot be reached by doubling. The message names the nearest
            possible height.
    """
    _, height, width = image_shape
    can = sorted(first * 2**k for first in range(4, 8) for k in range(1, 9) if smallest <= first * 2**k <= largest)
    if height != width or height not in can:
        nearest = min(can, key=lambda size: abs(size - height))
        raise ValueError(f"makes square images of {', '.join(map(str, can))} pixels (nearest: {nearest})")
    sizes = [height]
    while sizes[0] >= 8:
        sizes.insert(0, sizes[0] // 2)
    return sizes


def double_nearest(x: Tensor) -> Tensor:
    """Double maps by nearest-neighbour interpolation: (N, C, H, W) -> (N, C, 2H, 2W), with the dtype of x."""
    return F.interpolate(x, scale_factor=2, mode="nearest").to(x.dtype)  # under autocast a GPU returns fp32 here


def spectral_norm(module: nn.Module) -> nn.Module:
    """Add torch's spectral normalization to a layer and return the layer.

    The layer's weight is divided by its largest singular value (Miyato et al. 2018, equation 8). This value is
    estimated by power iteration. A forward pass does not change the estimate:
    `gan_dist.game.regularizers.iterate_spectral_norms` improves it once per D step.
    """
    parametrizations.spectral_norm(module)
    norms: Any = module.parametrizations["weight"]  # type: ignore[index]
    norms[0].__class__ = _SpectralNorm
    norms.eval()  # in eval mode a forward pass makes no power iteration
    return module


class _SpectralNorm(parametrizations._SpectralNorm):
    """torch's spectral normalization, computed in full precision whatever the precision of the run is."""

    def forward(self, weight: Tensor) -> Tensor:
        with full_precision(weight.device):
            return super().forward(weight)


class Embedding(nn.Embedding):
    """An embedding y (N,) -> (N, embedding_dim) whose gradient is deterministic: the same bits in every repetition."""

    def forward(self, y: Tensor) -> Tensor:
        return lookup(self.weight, y)


class MinibatchStd(nn.Module):
    """Minibatch standard deviation: append one channel that tells D how much the samples of a group differ.

    The channel holds the standard deviation over the group, averaged over channels and pixels (Karras et al. 2018,
    section 3). x (N, C, H, W) -> (N, C + 1, H, W). A group is 4 consecutive samples of the batch. The result does not
    depend on how the global batch is split into per-process batches and micro-batches, if each of them holds whole
    groups.
    """

    group_size = 4

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        groups = wide.unflatten(0, (-1, min(self.group_size, len(x))))
        deviation = (groups.var(1, correction=0) + 1e-8).sqrt().mean((1, 2, 3))
        joined = deviation[:, None].expand(-1, groups.shape[1]).reshape(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])
        return torch.cat([x, joined.to(x.dtype)], dim=1)
