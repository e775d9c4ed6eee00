"""Differentiable augmentation of what D sees, for small data sets.

Real and generated images are transformed alike, so that D cannot learn the data by heart and G does not learn the
transformations (Zhao et al. 2020, "Differentiable augmentation for data-efficient GAN training", section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gan_dist import rng
from gan_dist.rng import Purpose


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
    rows, columns = (_moves(u[:, i], x.shape[2 + i], x.dtype)[:, None] for i in (0, 1))
    return rows @ x @ columns.mT  # a product, as the derivative of indexing adds up in any order on a GPU


def _moves(u: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Matrices (N, size, size) that move a vector down by a whole number of pixels from -size/8 to size/8."""
    most = int(size / 8 + 0.5)
    by = (u * (2 * most + 1)).floor() - most
    place = torch.arange(size, device=u.device)
    return (place[:, None] - place == by[:, None, None]).to(dtype)


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


class Augment:
    """The named augmentations, with draws that depend on the seed, the purpose and the image's number in the run."""

    def __init__(self, names: Sequence[str], seed: int) -> None:
        self.names = names
        self.seed = seed

    def __call__(self, x: Tensor, purpose: Purpose, first: int) -> Tensor:
        """Images (N, C, H, W), number first … first + N - 1 of the run."""
        if not self.names:
            return x
        drawn = torch.from_numpy(rng.uniform(self.seed, purpose, first, len(x), 7)).to(x.dtype)
        us = rng.to_device(drawn, x.device).split([size for _, size in AUGMENTATIONS.values()], dim=1)
        for (name, (apply, _)), u in zip(AUGMENTATIONS.items(), us):
            if name in self.names:
                x = apply(x, u)
        return x
