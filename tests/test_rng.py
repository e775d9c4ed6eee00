"""Tests of `gan_dist.rng`: any slice gives the same numbers, the distributions are right, and values never change."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from gan_dist import rng
from gan_dist.rng import Purpose


@pytest.mark.parametrize("dim", [1, 3, 4, 100])
def test_any_slice_gives_the_same_numbers(dim: int) -> None:
    whole = rng.uniform(5, Purpose.D_LATENT, 1000, 64, dim)
    parts = [rng.uniform(5, Purpose.D_LATENT, 1000 + a, b - a, dim) for a, b in [(0, 1), (1, 30), (30, 64)]]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_seeds_purposes_and_numbers_are_independent() -> None:
    def draw(seed: int, purpose: Purpose, first: int) -> np.ndarray:
        return rng.uniform(seed, purpose, first, 100, 100).ravel()

    first = draw(0, Purpose.D_LATENT, 0)
    others = (draw(1, Purpose.D_LATENT, 0), draw(0, Purpose.G_LATENT, 0), draw(0, Purpose.D_LATENT, 100))
    for other in others:
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.05  # 5 standard deviations at 10,000 numbers


def test_latents_are_standard_normal() -> None:
    z = rng.latents(3, Purpose.D_LATENT, 0, 2000, 50)
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 1e-3
    assert z.shape == (2000, 50)
    assert torch.isfinite(z).all()


@pytest.mark.parametrize("count", [7, 64, 700])
def test_latents_of_a_run_are_the_drawn_ones_whatever_the_slices(count: int) -> None:
    run = rng.Latents(5, like=torch.zeros(1, dtype=torch.float64))
    for seed, first in [(3, 0), (3, count), (3, 511), (3, 0), (4, 0), (3, 5 * count)]:
        for purpose in (Purpose.D_LATENT, Purpose.G_LATENT):
            assert torch.equal(run(seed, purpose, first, count), rng.latents(seed, purpose, first, count, 5))


def test_labels_have_the_given_probabilities() -> None:
    probs = torch.tensor([0.1, 0.0, 0.6, 0.3])
    counts = torch.bincount(rng.labels(3, Purpose.D_LABEL, 0, 10_000, probs), minlength=4).numpy()
    assert counts[1] == 0
    assert stats.chisquare(counts[[0, 2, 3]], [1000, 6000, 3000]).pvalue > 1e-3


def test_each_epoch_has_an_order_of_its_own() -> None:
    orders = [rng.permuted(0, Purpose.ORDER, epoch, np.arange(1000), 1000) for epoch in range(3)]
    for order in orders:
        assert sorted(order) == list(range(1000))
    for a, b in [(orders[0], orders[1]), (orders[1], orders[2]), (orders[0][:-1], orders[0][1:])]:
        assert abs(stats.spearmanr(a, b).statistic) < 4 / 1000**0.5


def test_every_order_is_as_likely() -> None:
    orders = [tuple(rng.permuted(0, Purpose.ORDER, epoch, np.arange(4), 4)) for epoch in range(2400)]
    counts = [orders.count(order) for order in itertools.permutations(range(4))]
    assert stats.chisquare(counts).pvalue > 1e-3


def test_values_are_those_of_every_earlier_version() -> None:
    """A run's numbers must not change with a release: these were drawn by the first one."""
    np.testing.assert_allclose(rng.uniform(0, Purpose.D_LATENT, 0, 1, 3)[0], GOLDEN_UNIFORM, rtol=1e-12)
    assert rng.permuted(7, Purpose.ORDER, 2, np.arange(6), 6).tolist() == GOLDEN_ORDER


def test_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    with rng.torch_seed(1, Purpose.INIT_G):
        first = torch.rand(3)
    with rng.torch_seed(1, Purpose.INIT_G):
        second = torch.rand(3)
    assert torch.equal(first, second)
    assert torch.equal(before, torch.get_rng_state())


GOLDEN_UNIFORM = [0.8144335776159864, 0.4396808049627232, 0.2997200291784332]
GOLDEN_ORDER = [0, 3, 4, 2, 5, 1]
