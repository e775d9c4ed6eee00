"""Generate images with a trained generator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from gan_dist import rng
from gan_dist.data.preprocess import to_uint8
from gan_dist.errors import ConfigError
from gan_dist.kernels.switches import ieee_fp32
from gan_dist.parallel.distributed import Distributed
from gan_dist.report.pictures import columns_of, grid_picture
from gan_dist.rng import Purpose

BATCH_SIZE = 64
Classes: TypeAlias = "int | str | Sequence[int | str]"


def sample(G: nn.Module, n: int, classes: Classes | None = None, seed: int = 0) -> Tensor:
    """Generate the images that `gan-dist sample` writes for the same seed and classes.

    They are generated in batches of 64, on the device of G. Image i depends only on G, `seed`, i and its label.

    Args:
        G: a generator as `gan_dist.load_generator` returns it.
        n: number of images, at least 1.
        classes: labels, or names of classes; image i gets `classes[i mod len(classes)]`. A single one is the class of
            all images. None for all classes in turn, and for an unconditional G.
        seed: seed of the latents z, 0 … 2^63 - 1.

    Returns:
        uint8 (n, C, H, W) on the CPU.

    Raises:
        ConfigError: G has no such class, or makes points; or `n` or `seed` is out of range.
    """
    if n < 1 or not 0 <= seed < 2**63:
        raise ConfigError(f"n={n} must be at least 1, and seed={seed} from 0 to {2**63 - 1}")
    shape: tuple[int, int, int] = tuple(G.image_shape)  # type: ignore[arg-type]
    if shape[1:] == (1, 1):
        raise ConfigError("this generator makes points, not images: call it as G(z)")
    images = torch.empty(n, *shape, dtype=torch.uint8)
    for i, image in enumerate(generate(G, n, seed, find_labels(G, classes))):
        images[i] = image
    return images


def find_labels(G: nn.Module, classes: Classes | None, option: str = "classes") -> list[int]:
    """Return the labels of the classes that the user asks for.

    Args:
        G: a generator as `gan_dist.load_generator` returns it.
        classes: labels as numbers; or texts, which are names of classes or labels. If names are numbers themselves, a
            text is a name first. None for all classes.
        option: how the user has given the classes, for messages.

    Raises:
        ConfigError: G has no such class, or no classes.
    """
    num_classes: int = G.num_classes  # type: ignore[assignment]
    names: list[str] = getattr(G, "class_names", [])
    if classes is None:
        return list(range(num_classes))
    classes = [classes] if isinstance(classes, int | str) else classes
    given = f"{option}={','.join(map(str, classes))}"
    if not num_classes:
        raise ConfigError(f"{given}: this run is unconditional; leave it out")
    numbers = {str(label): label for label in range(num_classes)}
    known = numbers | {name: label for label, name in enumerate(names)}
    if not classes:
        raise ConfigError(f"{given} names no class: leave it out for all classes")
    labels = []
    for wanted in classes:
        table = known if isinstance(wanted, str) else numbers
        text = str(wanted) if str(wanted) in table else str(wanted).strip()
        if text not in table:
            there_are = f", and none of the classes {', '.join(names[:20])}" if names else ""
            raise ConfigError(f"{given}: {wanted} is none of the labels 0 to {num_classes - 1}{there_are}")
        labels.append(table[text])
    return labels


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
