"""Pieces that architectures share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from gan_dist.kernels.lookup import lookup
from gan_dist.kernels.switches import full_precision


def join_label(x: Tensor, y: Tensor | None, num_classes: int) -> Tensor:
    """Append the class as a one-hot code to each vector, or as one-hot channels to each image.

    x (N, D) or (N, C, H, W) and y (N,) give (N, D + num_classes) or (N, C + num_classes, H, W); unchanged if
    num_classes is 0 (Mirza & Osindero 2014, "Conditional generative adversarial nets", figure 1).
    """
    if not num_classes:
        return x
    code = F.one_hot(needed(y, num_classes), num_classes).to(x.dtype)
    if x.ndim == 4:
        code = code[:, :, None, None].expand(-1, -1, *x.shape[2:])
    return torch.cat([x, code], dim=1)


def needed(y: Tensor | None, num_classes: int) -> Tensor:
    """The labels of a conditional network.

    Raises:
        TypeError: there are none.
    """
    if y is None:
        raise TypeError(f"this network is conditional on {num_classes} classes: pass labels y (N,)")
    return y


def map_sizes(image_shape: tuple[int, int, int], smallest: int = 16, largest: int = 256) -> list[int]:
    """Sizes of the maps between the first, of 4 to 7 pixels, and the image, doubling: 28 -> [7, 14, 28].

    Raises:
        ValueError: the image is not square, or no such first map grows to it; with the nearest size that can be made.
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
    """Maps (N, C, H, W) -> (N, C, 2H, 2W), each pixel four times; of x's type, which autocast on a GPU would widen."""
    return F.interpolate(x, scale_factor=2, mode="nearest").to(x.dtype)


def spectral_norm(module: nn.Module) -> nn.Module:
    """Divide a layer's weight by its largest singular value (Miyato et al. 2018, equation 8), as torch does.

    Forward passes leave the estimate as it is: `gan_dist.regularizers.iterate_spectral_norms` improves it, once a step.
    """
    parametrizations.spectral_norm(module)
    norms: Any = module.parametrizations["weight"]  # type: ignore[index]
    norms[0].__class__ = _SpectralNorm
    norms.eval()
    return module


class _SpectralNorm(parametrizations._SpectralNorm):
    """In full precision, whatever precision the network runs in."""

    def forward(self, weight: Tensor) -> Tensor:
        with full_precision(weight.device):
            return super().forward(weight)


class Embedding(nn.Embedding):
    """y (N,) -> (N, embedding_dim), whose gradient has the same bits each time, for any N."""

    def forward(self, y: Tensor) -> Tensor:
        return lookup(self.weight, y)


class MinibatchStd(nn.Module):
    """Join one more channel: the standard deviation over a group of samples, averaged over channels and pixels.

    So D sees how various its samples are (Karras et al. 2018, section 3). x (N, C, H, W) -> (N, C + 1, H, W). A group
    is 4 samples that follow each other in the batch: how it is split into shares of whole groups does not matter.
    """

    group_size = 4

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        groups = wide.unflatten(0, (-1, min(self.group_size, len(x))))
        deviation = (groups.var(1, correction=0) + 1e-8).sqrt().mean((1, 2, 3))
        joined = deviation[:, None].expand(-1, groups.shape[1]).reshape(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])
        return torch.cat([x, joined.to(x.dtype)], dim=1)
