"""Write images as PNG files, and put many images into one picture, a grid."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from torch.nn import functional as F

from gan_dist.report.sample_folder import ORIGIN

MAX_COLUMNS = 16  # largest number of classes that get columns of their own in a grid


def grid_picture(images: Tensor, columns: int) -> np.ndarray:
    """Put images into a grid with black gaps, row by row.

    Images with less than 32 rows of pixels are enlarged, each pixel to a square, so that a person can see them.

    Args:
        images: uint8 (N, C, H, W); N must be a multiple of `columns`.
        columns: number of columns.

    Returns:
        The picture, uint8 (height, width, C).
    """
    scale = max(1, 48 // images.shape[2]) if images.shape[2] < 32 else 1
    images = images.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    gap = max(2, scale)
    rows = F.pad(images.cpu(), (0, gap, 0, gap)).unflatten(0, (-1, columns))  # (rows, columns, C, H, W)
    picture = rows.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)
    return F.pad(picture, (0, 0, gap, 0, gap, 0)).numpy()


def columns_of(num_classes: int, near: int) -> int:
    """Return a number of columns near `near`, with which column i of a grid shows class i modulo the number of classes.

    Each class has the same number of columns, at least one. Of more than 16 classes, the first 16 get one each. Without
    classes the number is `near`.
    """
    if num_classes > MAX_COLUMNS:
        return MAX_COLUMNS
    return num_classes * max(1, round(near / num_classes)) if num_classes else near


def write_images(images: Iterator[Tensor], folder: Path, origin: str) -> None:
    """Write images uint8 (C, H, W) as PNG files 000000.png, 000001.png, … into `folder`, which exists.

    Each file contains the text `origin`; see `gan_dist.report.sample_folder`.
    """
    for i, image in enumerate(images):
        picture = Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy())
        picture.save(folder / f"{i:06d}.png", pnginfo=_text(origin))


def write_grid(images: Iterator[Tensor], classes: Sequence[int], folder: Path, origin: str) -> None:
    """Write images as one picture, grid.png.

    Args:
        images: uint8 (C, H, W) each.
        classes: labels of the images, in turn. Up to 16 labels get a column each, or several if that makes the grid
            more like a square. If there are more labels or none, the grid is almost square.
        folder: where to write; the directory exists.
        origin: as for `write_images`.
    """
    stack = torch.stack(list(images))
    near = math.isqrt(len(stack) - 1) + 1
    columns = min(columns_of(len(classes), near) if len(classes) <= MAX_COLUMNS else near, len(stack))
    missing = -len(stack) % columns
    stack = torch.cat([stack, stack.new_full((missing, *stack.shape[1:]), 255)])
    Image.fromarray(grid_picture(stack, columns).squeeze()).save(folder / "grid.png", pnginfo=_text(origin))


def _text(origin: str) -> PngInfo:
    info = PngInfo()
    info.add_text(ORIGIN, origin)
    return info
