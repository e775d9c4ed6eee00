"""A data set: disks and squares, which are drawn when they are needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from gan_dist import register_dataset


class Shapes(Dataset[tuple[np.ndarray, int]]):
    """Images uint8 (size, size), gray, of a disk (label 0) or a square (label 1) of a random place and size.

    Args:
        count: number of images.
        size: height and width.
    """

    classes = ("disk", "square")

    def __init__(self, count: int, size: int) -> None:
        self.size, self.targets = size, [i % 2 for i in range(count)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        radius, *centre = np.random.default_rng(index).uniform([0.15, 0.3, 0.3], [0.3, 0.7, 0.7]) * self.size
        y, x = np.ogrid[: self.size, : self.size]
        down, right = np.abs(y - centre[0]), np.abs(x - centre[1])
        label = self.targets[index]
        inside = np.maximum(down, right) < radius if label else np.hypot(down, right) < radius
        return np.uint8(255) * inside, label


@register_dataset("shapes")
def shapes(root: Path, *, count: int = 4096, size: int = 16) -> Shapes:
    """The settings are `data.args.count` and `data.args.size`; `root` is `data.root`, which is not needed here."""
    return Shapes(count, size)
