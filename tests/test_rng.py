"""Tests of `gan_dist.rng`: any slice gives the same numbers, the distributions are right, and values never change."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from conftest import ROOT
from scipy import stats

from gan_dist import rng
from gan_dist.rng import Purpose


def test_generator_is_splitmix64() -> None:
    """The first outputs for the seed 1234567, as they are published for implementations of the algorithm."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    states = [(1234567 + i * 0x9E3779B97F4A7C15) % 2**64 for i in range(1, 5)]
    mixed = rng._mix(torch.tensor([rng._signed(state) for state in states]))
    assert [x % 2**64 for x in mixed.tolist()] == published


@pytest.mark.parametrize("first", [1000, 2**50])
@pytest.mark.parametrize("dim", [1, 3, 4, 100])
def test_any_slice_gives_the_same_numbers(dim: int, first: int) -> None:
    whole = rng.words(5, Purpose.D_LATENT, first, 64, dim)
    parts = [rng.words(5, Purpose.D_LATENT, first + a, b - a, dim) for a, b in [(0, 1), (1, 30), (30, 64)]]
    assert torch.equal(torch.cat(parts), whole)
    assert len(whole.unique()) == 64 * dim


def test_streams_are_independent_and_normal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests of `benchmarks.draws`, with 10^6 numbers; its committed report has 10^8."""
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.draws import p_values

    found = p_values(10**6)
    assert len(found) == 25
    assert {name: p for name, p in found.items() if not p > 1e-4} == {}


def test_keys_are_far_apart() -> None:
    """Two streams are one sequence at two places: none of a run begins within another's first 2^40 numbers."""
    for seed in range(100):
        keys = [rng._key(seed, purpose) for purpose in Purpose]
        places = sorted((key * pow(0x9E3779B97F4A7C15, -1, 2**64)) % 2**64 for key in keys)
        assert min(b - a for a, b in itertools.pairwise([*places, places[0] + 2**64])) > 2**40


def test_latents_are_finite_at_the_ends_and_symmetric() -> None:
    u = rng.unit(torch.tensor([0, -1]))  # all bits 0, and all bits 1
    assert u.tolist() == [0, 1 - 2.0**-53]
    z = 2**0.5 * torch.erfinv(2 * u - 1 + 2.0**-53)
    assert z[1].item() == pytest.approx(-z[0].item()) == pytest.approx(stats.norm.isf(2.0**-54), abs=0.1)


def test_labels_have_the_given_probabilities() -> None:
    thresholds = rng.label_thresholds(torch.tensor([0.1, 0.0, 0.6, 0.3]))
    counts = torch.bincount(rng.labels(3, Purpose.D_LABEL, 0, 10_000, thresholds), minlength=4).numpy()
    assert counts[1] == 0
    assert stats.chisquare(counts[[0, 2, 3]], [1000, 6000, 3000]).pvalue > 1e-3


def test_labels_at_the_thresholds_and_of_one_class() -> None:
    thresholds = rng.label_thresholds(torch.tensor([0.25, 0.5, 0.25]))
    assert thresholds.tolist() == [2**61, 2**61 + 2**62]
    assert rng.label_thresholds(torch.full((10,), 0.1)).tolist() == sorted(rng.label_thresholds(torch.full((10,), 0.1)))
    assert rng.labels(0, Purpose.D_LABEL, 0, 5, rng.label_thresholds(torch.ones(1))).tolist() == [0] * 5
    assert rng.label_thresholds(torch.tensor([0.7, 0.3, 1e-20])).max() < 2**63 - 1, "sums that round up to 1"


@pytest.mark.parametrize("n", [1, 2, 17, 1797, 2**31 - 1])
def test_numbers_below_n(n: int) -> None:
    bits = rng.words(0, Purpose.STACK, 0, 1000, 1).flatten()
    assert rng.below(bits, n).tolist() == [int(Fraction(x % 2**64 >> 32, 2**32) * n) for x in bits.tolist()]
    assert rng.below(torch.tensor([0, -1]), n).tolist() == [0, n - 1]


def test_coins_are_fair() -> None:
    heads = int(rng.coins(0, Purpose.FLIP, 0, 100_000).sum())
    assert stats.binomtest(heads, 100_000).pvalue > 1e-3


def test_each_epoch_has_an_order_of_its_own() -> None:
    orders = [rng.permuted(0, Purpose.ORDER, epoch, torch.arange(1000), 1000).tolist() for epoch in range(3)]
    for order in orders:
        assert sorted(order) == list(range(1000))
    for a, b in [(orders[0], orders[1]), (orders[1], orders[2]), (orders[0][:-1], orders[0][1:])]:
        assert abs(stats.spearmanr(a, b).statistic) < 4 / 1000**0.5


def test_every_order_is_as_likely() -> None:
    orders = [tuple(rng.permuted(0, Purpose.ORDER, epoch, torch.arange(4), 4).tolist()) for epoch in range(2400)]
    counts = [orders.count(order) for order in itertools.permutations(range(4))]
    assert stats.chisquare(counts).pvalue > 1e-3


def test_values_are_those_of_every_earlier_version() -> None:
    """A run's numbers must not change with a release: these were drawn by the first one."""
    assert rng.words(0, Purpose.D_LATENT, 0, 1, 3).tolist() == [GOLDEN_WORDS]
    np.testing.assert_allclose(rng.latents(0, Purpose.D_LATENT, 0, 1, 3)[0], GOLDEN_LATENTS, rtol=1e-12)
    assert rng.permuted(7, Purpose.ORDER, 2, torch.arange(6), 6).tolist() == GOLDEN_ORDER


def test_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    with rng.torch_seed(1, Purpose.INIT_G):
        first = torch.rand(3)
    with rng.torch_seed(1, Purpose.INIT_G):
        second = torch.rand(3)
    assert torch.equal(first, second)
    assert torch.equal(before, torch.get_rng_state())


GOLDEN_WORDS = [7035165049579989344, 833576254290507114, 7518694502714540967]
GOLDEN_LATENTS = [-0.30186612118349876, -1.6934149111500403, -0.23375074322645598]
GOLDEN_ORDER = [1, 4, 3, 5, 2, 0]
