"""Images from a trained generator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from gan_dist import rng
from gan_dist.data.preprocess import to_uint8
from gan_dist.kernels.switches import ieee_fp32
from gan_dist.parallel.distributed import Distributed
from gan_dist.report.pictures import columns_of, grid_picture
from gan_dist.rng import Purpose

BATCH_SIZE = 64


@torch.no_grad()
def generate(G: nn.Module, n: int, seed: int, classes: Sequence[int]) -> Iterator[Tensor]:
    """Yield n images, uint8 (C, H, W). Image i has a latent of its own and class `classes[i mod len(classes)]`."""
    device = next(G.parameters()).device
    z_dim: int = G.z_dim  # type: ignore[assignment]
    for first in range(0, n, BATCH_SIZE):
        count = min(BATCH_SIZE, n - first)
        z = rng.latents(seed, Purpose.SAMPLE_LATENT, first, count, z_dim, like=next(G.parameters()))
        y = (
            torch.tensor([classes[i % len(classes)] for i in range(first, first + count)], device=device)
            if classes
            else None
        )
        with ieee_fp32():
            images = to_uint8(G(z) if y is None else G(z, y)).cpu()
        yield from images


@torch.no_grad()
@ieee_fp32()
def sample_grid(G: nn.Module, seed: int, rows: int, dist: Distributed) -> np.ndarray:
    """A picture of samples from latents that depend on the seed alone; with classes, one column a class.

    All processes call it together, and each generates its share.
    """
    num_classes: int = G.num_classes  # type: ignore[assignment]
    z_dim: int = G.z_dim  # type: ignore[assignment]
    columns = columns_of(num_classes, rows)
    share = dist.share(rows * columns)
    z = rng.latents(seed, Purpose.SAMPLE_LATENT, share.start, len(share), z_dim, like=next(G.parameters()))
    if num_classes:
        labels = torch.arange(columns).repeat(rows) % num_classes
        x = G(z, labels[share.start : share.stop].to(z.device))
    else:
        x = G(z)
    return grid_picture(dist.gather(to_uint8(x)), columns)
