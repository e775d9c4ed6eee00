"""Convert stored images to the floats that D takes, and back. All functions take tensors (N, C, H, W)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def images_to_float(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Convert images uint8 to floats in [-1, 1] of the same shape."""
    return images.to(dtype).div_(127.5).sub_(1)


def points_to_float(points: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Convert points to `dtype`. Their coordinates do not change, so they may lie outside [-1, 1]."""
    return points.to(dtype)


def to_uint8(x: Tensor) -> Tensor:
    """Convert floats in [-1, 1] to uint8, rounded; larger and smaller values are clamped. Inverts `images_to_float`."""
    return x.float().add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def mirror(x: Tensor, mirrored: Tensor) -> Tensor:
    """Exchange left and right in some images.

    Args:
        x: images (N, C, H, W).
        mirrored: True for the images to mirror, bool (N,).
    """
    return torch.where(mirrored[:, None, None, None], x.flip(3), x)


def fade(x: Tensor, alpha: float) -> Tensor:
    """Blend real images as a growing G blends its images (Karras et al. 2018, section 2).

    Args:
        x: images (N, C, H, W), with even H and W.
        alpha: in [0, 1]. At 0 the images lose the detail of the current stage: they are halved in size and enlarged
            again. At 1 they are unchanged.
    """
    return torch.lerp(F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="nearest"), x, alpha)
