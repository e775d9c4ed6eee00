"""From images as they are stored to what the networks take, and back. All are functions of tensors (N, C, H, W)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def images_to_float(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Images uint8 to floats in [-1, 1] of the same shape."""
    return images.to(dtype).div_(127.5).sub_(1)


def points_to_float(points: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Points of the plane are floats already and lie where they lie."""
    return points.to(dtype)


def to_uint8(x: Tensor) -> Tensor:
    """Floats in [-1, 1] to uint8, clamped and rounded: the inverse of `images_to_float`."""
    return x.float().add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def mirror(x: Tensor, mirrored: Tensor) -> Tensor:
    """The images of x for which `mirrored` (N,) bool is true, left and right exchanged; the others as they are."""
    return torch.where(mirrored[:, None, None, None], x.flip(3), x)


def fade(x: Tensor, alpha: float) -> Tensor:
    """Images blended as a growing G blends its own (Karras et al. 2018, section 2).

    At `alpha` 0 they are what their halves look like when enlarged again, at 1 they are themselves.
    """
    return torch.lerp(F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="nearest"), x, alpha)
