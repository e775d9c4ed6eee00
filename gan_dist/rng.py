"""Random numbers without hidden state: every number is a function of (seed, purpose, number of the sample).

Sample number n of a purpose gets the same random numbers, whichever process draws them and however many samples it
draws at once. So the world size, the number of DataLoader workers, the micro-batch size and a resume do not change the
training.

The numbers are computed where they are needed, on the CPU or on a GPU, by operations on 64-bit integers: the generator
SplitMix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators", figure 16), with a key that
follows from (seed, purpose), and a counter that follows from the number of the sample. The integers are the same on
every device, and so is what is decided by comparing integers: labels, coins, and numbers below n. Latents are computed
from them in float64, and may differ in the last bit.

Only initial weights and the subsets of KID are drawn by torch's own generator on the CPU; see `torch_seed`. Code of
users, such as random transforms of images, draws from global generators, which `global_generators` seeds.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

GENERATOR = "SplitMix64"  # checkpoints record it, because a run continues with other numbers if it is another one
BLOCK = 512  # number of samples that are drawn at once


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
    ITEM = 23  # what an item of a data set from Python draws


_GAMMA, _FACTORS = 0x9E3779B97F4A7C15, (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # the constants of SplitMix64


def _signed(x: int) -> int:
    """Return the int64 with the same 64 bits as a number from 0 to 2^64 - 1."""
    return (x + 2**63) % 2**64 - 2**63


def shifted(x: Tensor, by: int) -> Tensor:
    """Shift int64 numbers to the right and fill with zeros; torch's `>>` repeats the sign."""
    return (x >> by) & (2 ** (64 - by) - 1)


def _mix(x: Tensor) -> Tensor:
    """Mix the bits of int64 numbers: each input bit changes about half of the output bits (SplitMix64's last step)."""
    x = (x ^ shifted(x, 30)) * _signed(_FACTORS[0])
    x = (x ^ shifted(x, 27)) * _signed(_FACTORS[1])
    return x ^ shifted(x, 31)


@lru_cache(maxsize=1024)
def _key(seed: int, purpose: Purpose) -> int:
    """Return an int64 for a seed and a purpose.

    It is mixed twice. The numbers of two keys are the same sequence at two places, and mixing puts these far apart.
    """
    mixed = _mix(torch.tensor(_signed(seed + _GAMMA), device="cpu"))
    return int(_mix(mixed + _signed((int(purpose) + 1) * _GAMMA)))


def words(seed: int, purpose: Purpose, first: int, count: int, dim: int, device: torch.device | str = "cpu") -> Tensor:
    """Draw 64 random bits `dim` times for each of the samples first … first + count - 1: int64 (count, dim)."""
    counter = torch.arange(first * dim, (first + count) * dim, device=device)
    return _mix(counter * _signed(_GAMMA) + _key(seed, purpose)).view(count, dim)


def unit(bits: Tensor) -> Tensor:
    """Turn random bits, int64, into uniform numbers in [0, 1): float64 of the same shape, from the upper 53 bits."""
    return shifted(bits, 11).double() * 2.0**-53


def below(bits: Tensor, n: int) -> Tensor:
    """Turn random bits, int64, into whole numbers from 0 to n - 1, for n below 2^31: int64 of the same shape."""
    return (shifted(bits, 32) * n) >> 32


def retry_seed(seed: int, retries: int) -> int:
    """Return the seed for data and latents of a run that has gone back to a checkpoint `retries` times.

    With another seed the run gets other batches and latents, so that the same failure does not repeat.
    """
    return (seed + retries * 0x9E3779B97F4A7C15) % 2**63


def latents(seed: int, purpose: Purpose, first: int, count: int, z_dim: int, like: Tensor | None = None) -> Tensor:
    """Draw latents z ~ N(0, 1) for the samples first … first + count - 1: (count, z_dim).

    The numbers come from uniform ones by the inverse of the normal distribution function, in float64. They are float64
    on the CPU, or have the device and dtype of `like`.
    """
    device = "cpu" if like is None else like.device
    u = unit(words(seed, purpose, first, count, z_dim, device))
    z = 2**0.5 * torch.erfinv(2 * u - 1 + 2.0**-53)  # without the last term u = 0 would give -infinity
    return z if like is None else z.to(like.dtype)


def label_thresholds(class_probs: Tensor) -> Tensor:
    """Return what `labels` compares random bits with: the sums of the first probabilities, in units of 2^-63.

    Args:
        class_probs: the probability of each class, (num_classes,), on the CPU: sums on a GPU may be rounded otherwise.

    Returns:
        int64 (num_classes - 1,).
    """
    sums = class_probs.double().cumsum(0)[:-1]
    return (sums.clamp(max=1 - 2.0**-53) * 2.0**63).long()


def labels(seed: int, purpose: Purpose, first: int, count: int, thresholds: Tensor) -> Tensor:
    """Draw labels y for the samples first … first + count - 1: (count,) int64 in 0 … num_classes - 1.

    Args:
        thresholds: the `label_thresholds` of the classes; the labels are on their device.
    """
    drawn = shifted(words(seed, purpose, first, count, 1, thresholds.device)[:, 0], 1)
    return torch.searchsorted(thresholds, drawn, right=True)


def coins(seed: int, purpose: Purpose, first: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """Draw True with probability 1/2 for the samples first … first + count - 1: (count,) bool."""
    return words(seed, purpose, first, count, 1, device)[:, 0] < 0


ROUNDS = 8  # rounds of the Feistel network in `permuted`


def permuted(seed: int, purpose: Purpose, epoch: int, places: Tensor, n: int) -> Tensor:
    """Return the numbers of the images at some places of an epoch's random order, without computing the whole order.

    The order is a permutation of 0 … n - 1 that depends on (seed, purpose, epoch). A Feistel network permutes the cells
    of a grid of about sqrt(n) x sqrt(n), which has a few more than n cells. It is applied again to each result that is
    not below n (Black & Rogaway 2002, "Ciphers with arbitrary finite domains", sections 4 and 5).

    Args:
        places: places in the order, int64 (N,), from 0 to n - 1.
        n: number of images in the data set.

    Returns:
        int64 (N,) in 0 … n - 1, on the device of `places`.
    """
    rows = math.isqrt(n - 1) + 1
    columns = -(-n // rows)
    keys = words(seed, purpose, epoch, 1, ROUNDS)[0].tolist()
    found, outside = places.clone(), torch.ones_like(places, dtype=torch.bool)
    while outside.any():
        row, column = found[outside] // columns, found[outside] % columns
        for i in range(0, ROUNDS, 2):
            row = (row + shifted(_mix(column ^ keys[i]), 1) % rows) % rows
            column = (column + shifted(_mix(row ^ keys[i + 1]), 1) % columns) % columns
        found[outside] = row * columns + column
        outside = found >= n
    return found


@contextmanager
def torch_seed(seed: int, purpose: Purpose) -> Iterator[None]:
    """A context in which torch's global CPU random number generator is seeded with a function of (seed, purpose).

    At the end of the context the generator gets its previous state back.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(np.random.Philox(key=[seed, purpose]).random_raw()) >> 1)
        yield


@contextmanager
def global_generators() -> Iterator[Callable[[int, Purpose, int], None]]:
    """A context for code of users, which draws from the global generators of torch (on the CPU), NumPy and Python.

    Yields a function that seeds all three with a function of (seed, purpose, number of the sample). At the end of the
    context the generators get their previous states back.
    """
    numpy_state, python_state = np.random.get_state(), random.getstate()

    def seed_all(seed: int, purpose: Purpose, number: int) -> None:
        for_torch, for_numpy, for_python = words(seed, purpose, number, 1, 3)[0].tolist()
        torch.default_generator.manual_seed(for_torch)
        np.random.seed([for_numpy % 2**32, for_numpy // 2**32 % 2**32])
        random.seed(for_python)

    try:
        with torch.random.fork_rng(devices=[]):
            yield seed_all
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
