"""Differentiable augmentation of what D sees, for small data sets.

Real and generated images are transformed alike, so that D cannot learn the data by heart and G does not learn the
transformations (Zhao et al. 2020, "Differentiable augmentation for data-efficient GAN training", section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def color(x: Tensor, u: Tensor) -> Tensor:
    """Brightness, saturation and contrast of images (N, C, H, W), by u (N, 3) in [0, 1); 0.5 changes nothing."""
    brightness, saturation, contrast = (column[:, None, None, None] for column in u.unbind(1))
    x = x + (brightness - 0.5)
    gray = x.mean(1, keepdim=True)
    x = gray + (x - gray) * (2 * saturation)
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * (contrast + 0.5)


def translation(x: Tensor, u: Tensor) -> Tensor:
    """Images (N, C, H, W) moved by up to an eighth of their size down and right, by u (N, 2) in [0, 1); 0 comes in."""
    return _Move.apply(x, *(_pixels(u[:, i], x.shape[2 + i]) for i in (0, 1)))


def _pixels(u: Tensor, size: int) -> Tensor:
    """By how many pixels to move (N,): a whole number from -size/8 to size/8."""
    most = int(size / 8 + 0.5)
    return (u * (2 * most + 1)).floor().long() - most


class _Move(torch.autograd.Function):
    """x (N, C, H, W) moved by `down` and `right` (N,), whole numbers of pixels. Its gradient is moved back.

    torch's own gradient of indexing adds up in any order on a GPU, which would change the last bits each time.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, down: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(down, right)
        n, c, height, width = (torch.arange(size, device=x.device) for size in x.shape)
        rows, columns = height - down[:, None], width - right[:, None]  # where each pixel comes from: (N, H), (N, W)
        inside = [(place >= 0) & (place < size) for place, size in ((rows, x.shape[2]), (columns, x.shape[3]))]
        rows, columns = rows.clamp(0, x.shape[2] - 1), columns.clamp(0, x.shape[3] - 1)
        moved = x[n[:, None, None, None], c[:, None, None], rows[:, None, :, None], columns[:, None, None, :]]
        return torch.where(inside[0][:, None, :, None] & inside[1][:, None, None, :], moved, torch.zeros_like(moved))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        down, right = ctx.saved_tensors
        return _Move.apply(g, -down, -right), None, None


def cutout(x: Tensor, u: Tensor) -> Tensor:
    """Images (N, C, H, W) with 0 in a rectangle of half their height and width, its centre by u (N, 2) in [0, 1)."""
    rows, columns = (_inside(u[:, i], x.shape[2 + i]) for i in (0, 1))
    return x * ~(rows[:, None, :, None] & columns[:, None, None, :])


def _inside(u: Tensor, size: int) -> Tensor:
    """Which places of a side (N, size) lie in the rectangle."""
    width = int(size / 2 + 0.5)
    start = (u * (size + 1 - width % 2)).floor() - width // 2
    place = torch.arange(size, device=u.device)
    return (place >= start[:, None]) & (place < start[:, None] + width)


# In the order in which they are applied, with how many numbers they take.
AUGMENTATIONS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int]] = {
    "color": (color, 3),
    "translation": (translation, 2),
    "cutout": (cutout, 2),
}


NUMBERS = sum(count for _, count in AUGMENTATIONS.values())  # that all of them together take for an image


def augment(x: Tensor, names: Sequence[str], u: Tensor) -> Tensor:
    """Images (N, C, H, W) after the named augmentations, by u (N, NUMBERS) in [0, 1)."""
    columns = u.split([count for _, count in AUGMENTATIONS.values()], dim=1)
    for (name, (apply, _)), numbers in zip(AUGMENTATIONS.items(), columns):
        if name in names:
            x = apply(x, numbers)
    return x
