"""Grids of samples from fixed latents, and one of real images."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from gan_dist import rng
from gan_dist.data.loader import to_uint8
from gan_dist.data.sources import Images
from gan_dist.distributed import Distributed
from gan_dist.rng import Purpose
from gan_dist.state import State
from gan_dist.tracking import Tracker

MAX_COLUMNS = 16


def grid_picture(images: Tensor, columns: int) -> np.ndarray:
    """uint8 images (N, C, H, W), N a multiple of `columns`, as one picture (rows·H, columns·W, C).

    Images below 32 pixels are enlarged, each pixel to a square, so that a person can see them.
    """
    scale = max(1, 48 // images.shape[2]) if images.shape[2] < 32 else 1
    images = images.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    rows = images.cpu().unflatten(0, (-1, columns))  # (rows, columns, C, H, W)
    return rows.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2).contiguous().numpy()


def grid_labels(num_classes: int, rows: int, columns: int) -> Tensor | None:
    """One column a class: (rows·columns,) labels, or None without classes."""
    return torch.arange(columns).repeat(rows) % num_classes if num_classes else None


def grid_columns(num_classes: int, rows: int) -> int:
    """As many columns as classes, up to 16; a square without classes."""
    return min(num_classes, MAX_COLUMNS) or rows


@torch.no_grad()
def sample_grid(G: nn.Module, seed: int, rows: int, device: torch.device) -> np.ndarray:
    """A picture of samples from latents that depend on the seed alone; with classes, one column a class."""
    num_classes: int = G.num_classes  # type: ignore[assignment]
    z_dim: int = G.z_dim  # type: ignore[assignment]
    columns = grid_columns(num_classes, rows)
    z = rng.latents(seed, Purpose.SAMPLE_LATENT, 0, rows * columns, z_dim)
    y = grid_labels(num_classes, rows, columns)
    dtype = next(G.parameters()).dtype
    x = G(z.to(device, dtype)) if y is None else G(z.to(device, dtype), y.to(device))
    return grid_picture(to_uint8(x), columns)


def real_grid(dataset: Images, num_classes: int, rows: int) -> np.ndarray:
    """A picture of the first real images; with classes, one column a class, as far as the first images have them."""
    columns = grid_columns(num_classes, rows)
    images, labels = dataset.__getitems__(
        list(range(min(len(dataset), 100 * rows * columns if num_classes else rows**2)))
    )
    if num_classes:
        of_class = [images[labels == c][:rows] for c in range(columns)]
        if all(len(found) == rows for found in of_class):
            images = torch.stack(of_class, dim=1).flatten(0, 1)
    images = images[: rows * columns]
    missing = rows * columns - len(images)
    return grid_picture(torch.cat([images, images.new_zeros(missing, *images.shape[1:])]), columns)


class SampleGrid:
    """A grid of G_ema for the trackers."""

    at_start = True
    at_end = True

    def __init__(self, every_nimg: int, rows: int, seed: int, tracker: Tracker, dist: Distributed) -> None:
        self.every_nimg, self.rows, self.seed = every_nimg, rows, seed
        self.tracker, self.dist = tracker, dist

    def __call__(self, state: State) -> None:
        if self.dist.is_main:
            self.tracker.image(state.nimg, "grid", sample_grid(state.G_ema, self.seed, self.rows, self.dist.device))
