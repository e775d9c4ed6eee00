"""Differentiable augmentation of the images that D sees, for small data sets.

Real and generated images get the same kinds of random transformations. So D cannot memorise the data set, and G does
not learn to generate transformed images (Zhao et al. 2020, "Differentiable augmentation for data-efficient GAN
training", section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def color(x: Tensor, u: Tensor) -> Tensor:
    """Change brightness, saturation and contrast of images.

    Args:
        x: images (N, C, H, W).
        u: one random number in [0, 1) for each of the three changes, (N, 3); 0.5 changes nothing.
    """
    brightness, saturation, contrast = (column[:, None, None, None] for column in u.unbind(1))
    x = x + (brightness - 0.5)
    gray = x.mean(1, keepdim=True)
    x = gray + (x - gray) * (2 * saturation)
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * (contrast + 0.5)


def translation(x: Tensor, u: Tensor) -> Tensor:
    """Move images by up to an eighth of their size, up or down and left or right, and fill the rest with 0.

    Args:
        x: images (N, C, H, W).
        u: random numbers in [0, 1) for the vertical and the horizontal move, (N, 2).
    """
    return _Move.apply(x, *(_pixels(u[:, i], x.shape[2 + i]) for i in (0, 1)))


def _pixels(u: Tensor, size: int) -> Tensor:
    """Convert random numbers u (N,) in [0, 1) to moves: whole numbers of pixels from -size/8 to size/8, (N,)."""
    most = int(size / 8 + 0.5)
    return (u * (2 * most + 1)).floor().long() - most


class _Move(torch.autograd.Function):
    """Moves images x (N, C, H, W) by `down` and `right` pixels, int64 (N,). The backward pass moves the gradient back.

    torch's own gradient of indexing is not deterministic on a GPU, because it adds numbers in a random order.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, down: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(down, right)
        n, c, height, width = (torch.arange(size, device=x.device) for size in x.shape)
        rows, columns = height - down[:, None], width - right[:, None]  # place each pixel comes from: (N, H), (N, W)
        inside = [(place >= 0) & (place < size) for place, size in ((rows, x.shape[2]), (columns, x.shape[3]))]
        rows, columns = rows.clamp(0, x.shape[2] - 1), columns.clamp(0, x.shape[3] - 1)
        moved = x[n[:, None, None, None], c[:, None, None], rows[:, None, :, None], columns[:, None, None, :]]
        return torch.where(inside[0][:, None, :, None] & inside[1][:, None, None, :], moved, torch.zeros_like(moved))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        down, right = ctx.saved_tensors
        return _Move.apply(g, -down, -right), None, None


def cutout(x: Tensor, u: Tensor) -> Tensor:
    """Set a rectangle of half the height and width of each image to 0.

    Args:
        x: images (N, C, H, W).
        u: random numbers in [0, 1) that give the row and the column of the rectangle's centre, (N, 2).
    """
    rows, columns = (_inside(u[:, i], x.shape[2 + i]) for i in (0, 1))
    return x * ~(rows[:, None, :, None] & columns[:, None, None, :])


def _inside(u: Tensor, size: int) -> Tensor:
    """Tell which rows (or columns) of each image the rectangle covers.

    Args:
        u: random numbers (N,) in [0, 1) that give the centre.
        size: number of rows (or columns).

    Returns:
        bool (N, size).
    """
    width = int(size / 2 + 0.5)
    start = (u * (size + 1 - width % 2)).floor() - width // 2
    place = torch.arange(size, device=u.device)
    return (place >= start[:, None]) & (place < start[:, None] + width)


# The valid values in `train.augment`: the function, and how many random numbers it takes per image. The augmentations
# are applied in this order.
AUGMENTATIONS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int]] = {
    "color": (color, 3),
    "translation": (translation, 2),
    "cutout": (cutout, 2),
}


NUMBERS = sum(count for _, count in AUGMENTATIONS.values())  # random numbers per image for all augmentations together


def augment(x: Tensor, names: Sequence[str], u: Tensor) -> Tensor:
    """Apply augmentations to images.

    Args:
        x: images (N, C, H, W).
        names: keys of `AUGMENTATIONS`.
        u: random numbers in [0, 1), (N, NUMBERS). Each augmentation has its own columns, so it gets the same numbers
            whichever others are used.
    """
    columns = u.split([count for _, count in AUGMENTATIONS.values()], dim=1)
    for (name, (apply, _)), numbers in zip(AUGMENTATIONS.items(), columns):
        if name in names:
            x = apply(x, numbers)
    return x
