"""Grids of samples from fixed latents, and one of real images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gan_dist import rng
from gan_dist.checkpoint.state import State
from gan_dist.data.loader import to_uint8
from gan_dist.data.sources import Images
from gan_dist.engine.stats import Clock
from gan_dist.kernels.switches import ieee_fp32
from gan_dist.parallel.distributed import Distributed
from gan_dist.report.tracking import Tracker
from gan_dist.rng import Purpose

MAX_COLUMNS = 16


def grid_picture(images: Tensor, columns: int) -> np.ndarray:
    """uint8 images (N, C, H, W), N a multiple of `columns`, as one picture (height, width, C) with black gaps.

    Images below 32 pixels are enlarged, each pixel to a square, so that a person can see them.
    """
    scale = max(1, 48 // images.shape[2]) if images.shape[2] < 32 else 1
    images = images.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    gap = max(2, scale)
    rows = F.pad(images.cpu(), (0, gap, 0, gap)).unflatten(0, (-1, columns))  # (rows, columns, C, H, W)
    picture = rows.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)
    return F.pad(picture, (0, 0, gap, 0, gap, 0)).numpy()


def grid_labels(num_classes: int, rows: int, columns: int) -> Tensor | None:
    """One column a class: (rows·columns,) labels, or None without classes."""
    return torch.arange(columns).repeat(rows) % num_classes if num_classes else None


def grid_columns(num_classes: int, rows: int) -> int:
    """As many columns as classes, up to 16; a square without classes."""
    return min(num_classes, MAX_COLUMNS) or rows


@torch.no_grad()
@ieee_fp32()
def sample_grid(G: nn.Module, seed: int, rows: int, dist: Distributed) -> np.ndarray:
    """A picture of samples from latents that depend on the seed alone; with classes, one column a class.

    Every process generates its share.
    """
    num_classes: int = G.num_classes  # type: ignore[assignment]
    z_dim: int = G.z_dim  # type: ignore[assignment]
    columns = grid_columns(num_classes, rows)
    share = dist.share(rows * columns)
    z = rng.latents(seed, Purpose.SAMPLE_LATENT, share.start, len(share), z_dim, like=next(G.parameters()))
    y = grid_labels(num_classes, rows, columns)
    x = G(z) if y is None else G(z, y[share.start : share.stop].to(z.device))
    return grid_picture(dist.gather(to_uint8(x)), columns)


def real_grid(dataset: Images, num_classes: int, rows: int) -> np.ndarray:
    """A picture of the first real images, with classes one column a class; white where there are too few."""
    columns = grid_columns(num_classes, rows)
    if num_classes:
        of_class = [(dataset.labels == label).nonzero().flatten().tolist() for label in range(columns)]
        wanted = [of_class[c][r] if r < len(of_class[c]) else None for r in range(rows) for c in range(columns)]
    else:
        wanted = [i if i < len(dataset) else None for i in range(rows * columns)]
    blank = torch.full_like(dataset[0][0], 255)
    return grid_picture(torch.stack([blank if i is None else dataset[i][0] for i in wanted]), columns)


class SampleGrid:
    """A picture of what G_ema makes, for the trackers; `draw` makes it in all processes together."""

    at_start = True
    at_end = True

    def __init__(
        self, every_nimg: int, draw: Callable[[nn.Module], np.ndarray], tracker: Tracker, clock: Clock
    ) -> None:
        self.every_nimg, self.draw, self.tracker, self.clock = every_nimg, draw, tracker, clock

    def __call__(self, state: State) -> None:
        with self.clock.paused():
            self.tracker.image(state.nimg, "grid", self.draw(state.G_ema))
