"""Differentiable augmentation of the images that D sees, for small data sets.

Real and generated images get the same kinds of random transformations. So D cannot memorise the data set, and G does
not learn to generate transformed images (Zhao et al. 2020, "Differentiable augmentation for data-efficient GAN
training", section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gan_dist.parts import Table
from gan_dist.rng import below, unit


def color(x: Tensor, bits: Tensor) -> Tensor:
    """Change brightness, saturation and contrast of images.

    Args:
        x: images (N, C, H, W).
        bits: random bits for each of the three changes, int64 (N, 3). As numbers in [0, 1), 0.5 changes nothing.
    """
    u = unit(bits).to(x.dtype)
    brightness, saturation, contrast = (column[:, None, None, None] for column in u.unbind(1))
    x = x + (brightness - 0.5)
    gray = x.mean(1, keepdim=True)
    x = gray + (x - gray) * (2 * saturation)
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * (contrast + 0.5)


def translation(x: Tensor, bits: Tensor) -> Tensor:
    """Move images by up to an eighth of their size, up or down and left or right, and fill the rest with 0.

    Args:
        x: images (N, C, H, W).
        bits: random bits for the vertical and the horizontal move, int64 (N, 2).
    """
    return _Move.apply(x, *(_pixels(bits[:, i], x.shape[2 + i]) for i in (0, 1)))


def _pixels(bits: Tensor, size: int) -> Tensor:
    """Convert random bits (N,) to moves: whole numbers of pixels from -size/8 to size/8, int64 (N,)."""
    most = int(size / 8 + 0.5)
    return below(bits, 2 * most + 1) - most


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


def cutout(x: Tensor, bits: Tensor) -> Tensor:
    """Set a rectangle of half the height and width of each image to 0.

    Args:
        x: images (N, C, H, W).
        bits: random bits that give the row and the column of the rectangle's centre, int64 (N, 2).
    """
    rows, columns = (_inside(bits[:, i], x.shape[2 + i]) for i in (0, 1))
    return x * ~(rows[:, None, :, None] & columns[:, None, None, :])


def _inside(bits: Tensor, size: int) -> Tensor:
    """Tell which rows (or columns) of each image the rectangle covers.

    Args:
        bits: random bits (N,) that give the centre.
        size: number of rows (or columns).

    Returns:
        bool (N, size).
    """
    width = int(size / 2 + 0.5)
    start = below(bits, size + 1 - width % 2) - width // 2
    place = torch.arange(size, device=bits.device)
    return (place >= start[:, None]) & (place < start[:, None] + width)


class Augmentation(NamedTuple):
    """An augmentation.

    Attributes:
        apply: a function of images (N, C, H, W) and of random bits, int64 (N, numbers), that returns images of the same
            shape.
        numbers: how many random numbers it takes per image.
    """

    apply: Callable[..., Tensor]
    numbers: int


NUMBERS = 16  # random numbers that are drawn per image; more than this package's own augmentations need

# The valid values in `train.augment`. This package's own augmentations are applied in this order.
_OWN = {
    "color": Augmentation(color, 3),
    "translation": Augmentation(translation, 2),
    "cutout": Augmentation(cutout, 2),
}
AUGMENTATIONS = Table("augmentation", _OWN)

Applied = tuple[Callable[[Tensor, Tensor], Tensor], slice]  # an augmentation, and its columns of the random bits


def make_augmentations(names: Sequence[str], args: Mapping[str, Mapping[str, Any]]) -> list[Applied]:
    """Give each augmentation its columns of the random bits.

    This package's own augmentations have fixed columns, so they get the same numbers whichever others are used. Users'
    augmentations follow them in the order of `names`.

    Args:
        names: keys of `AUGMENTATIONS`.
        args: keyword arguments for users' augmentations, by name.

    Raises:
        ValueError: together they take more than NUMBERS random numbers.
    """
    order = [*_OWN, *(name for name in names if name not in _OWN)]
    applied: list[Applied] = []
    start = 0
    for name in order:
        apply, count = AUGMENTATIONS[name]
        columns = slice(start, start + count)
        start += count
        if name in names:
            applied.append((partial(apply, **args.get(name, {})), columns))
    if start > NUMBERS:
        raise ValueError(f"they take {start} random numbers per image; at most {NUMBERS}")
    return applied


def augment(x: Tensor, augmentations: Sequence[Applied], bits: Tensor) -> Tensor:
    """Apply augmentations to images.

    Args:
        x: images (N, C, H, W).
        augmentations: from `make_augmentations`.
        bits: random bits, int64 (N, NUMBERS).
    """
    for apply, columns in augmentations:
        x = apply(x, bits[:, columns])
    return x
