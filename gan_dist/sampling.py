"""Images from a trained generator, and writing them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from gan_dist import rng
from gan_dist.data.loader import to_uint8
from gan_dist.engine.callbacks.grid import MAX_COLUMNS, grid_picture
from gan_dist.kernels.switches import ieee_fp32
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


def write_images(images: Iterator[Tensor], folder: Path) -> None:
    """One PNG each: 000000.png, 000001.png, …"""
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy()).save(folder / f"{i:06d}.png")


def write_grid(images: Iterator[Tensor], classes: Sequence[int], folder: Path) -> Path:
    """One picture, grid.png, with a column for each class, or nearly square without classes."""
    stack = torch.stack(list(images))
    columns = min(len(classes), MAX_COLUMNS) or math.isqrt(len(stack) - 1) + 1
    missing = -len(stack) % columns
    stack = torch.cat([stack, stack.new_full((missing, *stack.shape[1:]), 255)])
    path = folder / "grid.png"
    Image.fromarray(grid_picture(stack, columns).squeeze()).save(path)
    return path
