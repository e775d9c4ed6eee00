"""Random numbers without hidden state: every number is a function of (seed, purpose, number of the sample).

Sample number n of a purpose gets the same random numbers, whichever process draws them and however many samples it
draws at once. So the world size, the number of DataLoader workers, the micro-batch size and a resume do not change the
training. The random number generator is numpy's counter-based Philox (Salmon et al. 2011, "Parallel random numbers: as
easy as 1, 2, 3"), with the key (seed, purpose) and a counter that follows from the number of the sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

BLOCK = 512  # number of samples that are drawn, or looked up, at once


class Purpose(IntEnum):
    """What a random number is used for. Numbers of two purposes are independent.

    Never change the values: they are part of the key, so all runs would get other random numbers.
    """

    ORDER = 0  # the order of the images in an epoch
    FLIP = 1
    D_LATENT = 2
    D_LABEL = 3
    G_LATENT = 4
    G_LABEL = 5
    INIT_G = 6
    INIT_D = 7
    SAMPLE_LATENT = 8
    SAMPLE_LABEL = 9
    METRIC_LATENT = 10
    METRIC_LABEL = 11
    METRIC_SUBSETS = 12
    CLASSIFIER = 13
    INTERPOLATE = 14
    POINTS = 15
    POINTS_MODE = 16
    AUGMENT_REAL = 17
    AUGMENT_D_FAKE = 18
    AUGMENT_G_FAKE = 19
    STACK = 20
    STAND_IN = 21  # the image in place of one that cannot be read
    REAL_PICTURE = 22


def uniform(seed: int, purpose: Purpose, first: int, count: int, dim: int) -> np.ndarray:
    """Draw uniform numbers in [0, 1) for the samples first … first + count - 1: (count, dim) float64."""
    blocks = -(-dim // 4)  # each step of Philox's counter gives four numbers
    counter = first * blocks
    philox = np.random.Philox(key=[seed, purpose], counter=[counter % 2**64, counter >> 64, 0, 0])
    return np.random.Generator(philox).random((count, 4 * blocks))[:, :dim]


def retry_seed(seed: int, retries: int) -> int:
    """Return the seed for data and latents of a run that has gone back to a checkpoint `retries` times.

    With another seed the run gets other batches and latents, so that the same failure does not repeat.
    """
    return (seed + retries * 0x9E3779B97F4A7C15) % 2**63


def latents(seed: int, purpose: Purpose, first: int, count: int, z_dim: int, like: Tensor | None = None) -> Tensor:
    """Draw latents z ~ N(0, 1) for the samples first … first + count - 1: (count, z_dim).

    The numbers come from uniform ones by the inverse of the normal distribution function. They are float64 on the CPU,
    or have the device and dtype of `like`.
    """
    u = torch.from_numpy(uniform(seed, purpose, first, count, z_dim))
    z = 2**0.5 * torch.erfinv(2 * u - 1 + 2.0**-53)  # without the last term u = 0 would give -infinity
    return z if like is None else to_device(z.to(like.dtype), like.device)


class Latents:
    """The latents of a run, with the device and dtype of a tensor `like`; the same numbers as those of `latents`.

    The object draws whole blocks of BLOCK samples and keeps the last block of each purpose, because a block costs
    little more time than a few samples.
    """

    def __init__(self, z_dim: int, like: Tensor) -> None:
        self.z_dim, self.like = z_dim, like
        self._blocks: dict[Purpose, tuple[tuple[int, int], Tensor]] = {}

    def __call__(self, seed: int, purpose: Purpose, first: int, count: int) -> Tensor:
        """Return the latents of the samples first … first + count - 1: (count, z_dim)."""
        parts = []
        while count:
            number, start = divmod(first, BLOCK)
            if self._blocks.get(purpose, (None,))[0] != (seed, number):
                block = latents(seed, purpose, number * BLOCK, BLOCK, self.z_dim, self.like)
                self._blocks[purpose] = ((seed, number), block)
            parts.append(self._blocks[purpose][1][start : start + count])
            first, count = first + len(parts[-1]), count - len(parts[-1])
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def labels(seed: int, purpose: Purpose, first: int, count: int, class_probs: Tensor) -> Tensor:
    """Draw labels y for the samples first … first + count - 1: (count,) int64 in 0 … num_classes - 1.

    Args:
        class_probs: the probability of each class, (num_classes,).
    """
    u = torch.from_numpy(uniform(seed, purpose, first, count, 1).ravel())
    return torch.searchsorted(class_probs.double().cumsum(0), u, right=True).clamp_(max=len(class_probs) - 1)


def coins(seed: int, purpose: Purpose, first: int, count: int) -> Tensor:
    """Draw True with probability 1/2 for the samples first … first + count - 1: (count,) bool."""
    return torch.from_numpy(uniform(seed, purpose, first, count, 1).ravel() < 0.5)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to a device. The host does not wait for a copy to a GPU."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


ROUNDS = 8  # rounds of the Feistel network in `permuted`


def permuted(seed: int, purpose: Purpose, epoch: int, places: np.ndarray, n: int) -> np.ndarray:
    """Return the numbers of the images at some places of an epoch's random order, without computing the whole order.

    The order is a permutation of 0 … n - 1 that depends on (seed, purpose, epoch). A Feistel network permutes the cells
    of a grid of about sqrt(n) x sqrt(n), which has a few more than n cells. It is applied again to each result that is
    not below n (Black & Rogaway 2002, "Ciphers with arbitrary finite domains", sections 4 and 5).

    Args:
        places: places in the order (N,), from 0 to n - 1.
        n: number of images in the data set.

    Returns:
        (N,) int64 in 0 … n - 1.
    """
    rows = math.isqrt(n - 1) + 1
    columns = -(-n // rows)
    philox = np.random.Philox(key=[seed, purpose], counter=[0, 0, epoch, 0])
    keys = philox.random_raw(ROUNDS)
    found = np.asarray(places, dtype=np.uint64)
    outside = np.ones(len(found), dtype=bool)
    while outside.any():
        row, column = np.divmod(found[outside], np.uint64(columns))
        for i in range(0, ROUNDS, 2):
            row = (row + _mix(column ^ keys[i]) % np.uint64(rows)) % np.uint64(rows)
            column = (column + _mix(row ^ keys[i + 1]) % np.uint64(columns)) % np.uint64(columns)
        found[outside] = row * np.uint64(columns) + column
        outside = found >= n
    return found.astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    """Mix the bits of 64-bit numbers: each input bit changes about half of the output bits (SplitMix64's last step)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@contextmanager
def torch_seed(seed: int, purpose: Purpose) -> Iterator[None]:
    """A context in which torch's global CPU random number generator is seeded with a function of (seed, purpose).

    At the end of the context the generator gets its previous state back.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(np.random.Philox(key=[seed, purpose]).random_raw()) >> 1)
        yield
