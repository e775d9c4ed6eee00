"""Generate images with a trained generator."""

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
    """Generate images one by one.

    Image i depends only on G, `seed`, i and its label, so more images do not change the first ones.

    Args:
        G: a generator as `gan_dist.load_generator` returns it.
        n: number of images.
        seed: seed of the latents z.
        classes: image i gets the label `classes[i mod len(classes)]`; empty if G is unconditional.

    Yields:
        uint8 (C, H, W) on the CPU.
    """
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
    """Generate a grid of samples. All processes call this function together, and each generates its share.

    Args:
        G: the generator, in eval mode. If it is conditional, each column of the grid shows one class.
        seed: the latents z depend on nothing else, so the grids of one run show how the same samples change.
        rows: number of rows; the grid has about as many columns, see `gan_dist.report.pictures.columns_of`.
        dist: the processes.

    Returns:
        The picture, uint8 (height, width, C).
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
