"""Statistical tests of the random numbers: bits, normal numbers, and whether streams depend on each other.

    python -m benchmarks draws [--count N] [--json FILE]

Each row is a test of N numbers, and its p-value: the probability that independent random numbers look at least as odd.
p-values below 1e-4 are unlikely in any of the rows. Without `--count`, N is 10^8, which takes about a minute.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
from scipy import stats
from scipy.special import ndtr

from benchmarks import arena
from gan_dist import rng
from gan_dist.rng import Purpose

DIM = 100  # numbers of each sample
BINS = 2**12  # equally likely ranges of the normal distribution
STEP = 10_000  # samples that are drawn at once
POPULATION = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)

# The streams that are compared with seed 0, D_LATENT, sample 0, 1, …: seed, purpose, number of the first sample.
OTHERS = {
    "next sample": (0, Purpose.D_LATENT, 1),
    "next seed": (1, Purpose.D_LATENT, 0),
    "seed 2^63 - 1": (2**63 - 1, Purpose.D_LATENT, 0),
    "next purpose": (0, Purpose.D_LABEL, 0),
    "latents of G": (0, Purpose.G_LATENT, 0),
    "after going back": (rng.retry_seed(0, 1), Purpose.D_LATENT, 0),
}


def p_values(count: int) -> dict[str, float]:
    """Draw `count` numbers, a multiple of DIM, from each stream, and return the p-value of each test."""
    bits, bytes_, bins = np.zeros(64), np.zeros((8, 256)), np.zeros(BINS)
    products: dict[str, float] = defaultdict(float)
    samples = count // DIM
    for first in range(0, samples, STEP):
        part = min(STEP, samples - first)
        words, z = _draw(0, Purpose.D_LATENT, first, part)
        one_byte = words.reshape(-1).view(np.uint8).reshape(-1, 8)
        bits += np.unpackbits(one_byte, axis=1).sum(0, dtype=np.int64)
        bytes_ += np.stack([np.bincount(one_byte[:, i], minlength=256) for i in range(8)])
        bins += np.bincount((ndtr(z.reshape(-1)) * BINS).astype(np.int64), minlength=BINS)
        _compare(products, "next number", words[:, :-1], z[:, :-1], words[:, 1:], z[:, 1:])
        for name, (seed, purpose, start) in OTHERS.items():
            _compare(products, name, words, z, *_draw(seed, purpose, start + first, part))
    n = samples * DIM
    distance = np.abs(np.cumsum(bins) / n - np.arange(1, BINS + 1) / BINS).max()
    found = {
        "bits: as many ones as zeros": stats.chi2.sf(((bits - n / 2) ** 2 / (n / 4)).sum(), 64),
        "bytes: each value as often (chi-square)": stats.chi2.sf(((bytes_ - n / 256) ** 2 / (n / 256)).sum(), 8 * 255),
        "normal numbers (chi-square)": stats.chi2.sf(((bins - n / BINS) ** 2 / (n / BINS)).sum(), BINS - 1),
        "normal numbers (Kolmogorov-Smirnov)": stats.kstwobign.sf(distance * n**0.5),
    }
    pairs = {name: n - samples if name.startswith("next number") else n for name in products}
    return found | {name: 2 * stats.norm.sf(abs(total) / pairs[name] ** 0.5) for name, total in products.items()}


def _draw(seed: int, purpose: Purpose, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Random bits and normal numbers of some samples, (count, DIM) each."""
    words = rng.words(seed, purpose, first, count, DIM).numpy()
    return words, rng.latents(seed, purpose, first, count, DIM).numpy()


def _compare(products: dict[str, float], name: str, *pair: np.ndarray) -> None:
    """Add to the sums of what has mean 0 and variance 1, if two streams are independent: bits, numbers and squares."""
    words, z, other_words, other = pair
    different = POPULATION[np.ascontiguousarray(words ^ other_words).view(np.uint8)].sum(dtype=np.int64)
    products[f"{name}: bits that differ"] += (float(different) - 32 * words.size) / 4
    products[f"{name}: correlation"] += float((z * other).sum())
    products[f"{name}: correlation of squares"] += float(((z**2 - 1) * (other**2 - 1)).sum()) / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10**8, help="numbers of each stream (default 100000000)")
    parser.add_argument("--json", type=Path, help="file for the report")
    options = parser.parse_args()
    if options.count < DIM:
        parser.error(f"--count must be at least {DIM}")
    found = p_values(options.count)
    print("| test | p-value |\n|---|---|")
    for name, p in found.items():
        print(f"| {name} | {p:.3g} |")
    arena.write(options.json, {"count": options.count, "p_values": found})
