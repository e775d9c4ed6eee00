"""Keyed randomness: every draw is a function of (seed, purpose, number of the sample), never of hidden state.

Sample number `first + i` of a purpose gets the same numbers whoever draws them and in whatever slices, so processes,
workers, micro-batches and resumes change nothing. The generator is numpy's counter-based Philox (Salmon et al. 2011,
"Parallel random numbers: as easy as 1, 2, 3"): key = (seed, purpose), counter = (block of the sample).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

BLOCK = 512  # samples that are drawn, or looked up, at once


class Purpose(IntEnum):
    """What a draw is for; draws of two purposes are independent. Values are part of every run: never renumber."""

    ORDER = 0  # of images in an epoch
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


def uniform(seed: int, purpose: Purpose, first: int, count: int, dim: int) -> np.ndarray:
    """Uniform numbers in [0, 1) for the samples first … first + count - 1: (count, dim) float64."""
    blocks = -(-dim // 4)  # one step of Philox's counter gives four numbers
    counter = first * blocks
    philox = np.random.Philox(key=[seed, purpose], counter=[counter % 2**64, counter >> 64, 0, 0])
    return np.random.Generator(philox).random((count, 4 * blocks))[:, :dim]


def retry_seed(seed: int, retries: int) -> int:
    """The seed of a run's data and latents after it went back to a checkpoint so often."""
    return (seed + retries * 0x9E3779B97F4A7C15) % 2**63


def latents(seed: int, purpose: Purpose, first: int, count: int, z_dim: int, like: Tensor | None = None) -> Tensor:
    """Latents z ~ N(0, 1) by inversion: (count, z_dim), float64 on the CPU, or with the device and dtype of `like`."""
    u = torch.from_numpy(uniform(seed, purpose, first, count, z_dim))
    z = 2**0.5 * torch.erfinv(2 * u - 1 + 2.0**-53)  # the last term keeps the argument off -1: no infinity
    return z if like is None else to_device(z.to(like.dtype), like.device)


class Latents:
    """Latents of a run, sample after sample, on the device of a tensor `like`.

    They are drawn a block at a time, which costs little more than a few of them.
    """

    def __init__(self, z_dim: int, like: Tensor) -> None:
        self.z_dim, self.like = z_dim, like
        self._blocks: dict[Purpose, tuple[tuple[int, int], Tensor]] = {}

    def __call__(self, seed: int, purpose: Purpose, first: int, count: int) -> Tensor:
        """Those numbered first … first + count - 1: (count, z_dim)."""
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
    """Class labels y with the given probabilities (num_classes,): (count,) int64."""
    u = torch.from_numpy(uniform(seed, purpose, first, count, 1).ravel())
    return torch.searchsorted(class_probs.double().cumsum(0), u, right=True).clamp_(max=len(class_probs) - 1)


def coins(seed: int, purpose: Purpose, first: int, count: int) -> Tensor:
    """True with probability 1/2: (count,) bool."""
    return torch.from_numpy(uniform(seed, purpose, first, count, 1).ravel() < 0.5)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy to a device without making the host wait for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


ROUNDS = 8


def permuted(seed: int, purpose: Purpose, epoch: int, places: np.ndarray, n: int) -> np.ndarray:
    """Which of n images are at these places of the epoch's order: (N,) int64. The cost is that of N, not of n.

    A keyed bijection of 0 … n - 1: a Feistel network on a grid of about sqrt(n) x sqrt(n), repeated for what falls off
    its end (Black & Rogaway 2002, "Ciphers with arbitrary finite domains", sections 4 and 5).
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
    """A bijection of 64 bits in which each input bit turns about half of the output's (SplitMix64's last step)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@contextmanager
def torch_seed(seed: int, purpose: Purpose) -> Iterator[None]:
    """Inside, torch's global CPU generator is keyed on (seed, purpose); outside, nothing has changed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(np.random.Philox(key=[seed, purpose]).random_raw()) >> 1)
        yield
