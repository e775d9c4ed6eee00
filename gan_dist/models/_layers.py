"""Pieces that architectures share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def join_label(x: Tensor, y: Tensor | None, num_classes: int) -> Tensor:
    """Append the class as a one-hot code to each vector, or as one-hot channels to each image.

    x (N, D) or (N, C, H, W) and y (N,) give (N, D + num_classes) or (N, C + num_classes, H, W); unchanged if
    num_classes is 0 (Mirza & Osindero 2014, "Conditional generative adversarial nets", figure 1).
    """
    if not num_classes:
        return x
    if y is None:
        raise TypeError(f"this network is conditional on {num_classes} classes: pass labels y (N,)")
    code = F.one_hot(y, num_classes).to(x.dtype)
    if x.ndim == 4:
        code = code[:, :, None, None].expand(-1, -1, *x.shape[2:])
    return torch.cat([x, code], dim=1)
