"""Losses, penalties, averages and schedules against closed forms and other implementations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gan_dist.engine.ema import Average, MovingAverage
from gan_dist.game.losses import LOSSES
from gan_dist.game.regularizers import clip_weights, gradient_penalty, interpolate, squared_gradient_norms
from gan_dist.settings.schema import Config, Growth, Optimizer
from gan_dist.wiring.iteration import optimizer_schedule, stages

REAL = torch.tensor([-3.0, -0.5, 0.0, 2.0, 30.0], dtype=torch.float64)
FAKE = torch.tensor([1.0, -2.0, 0.0, 5.0, -30.0], dtype=torch.float64)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", ["minimax", "non_saturating"])
def test_d_loss_is_binary_cross_entropy(name: str, smoothing: float) -> None:
    real = F.binary_cross_entropy_with_logits(REAL, torch.full_like(REAL, 1 - smoothing), reduction="none")
    fake = F.binary_cross_entropy_with_logits(FAKE, torch.zeros_like(FAKE), reduction="none")
    torch.testing.assert_close(LOSSES[name].D(REAL, FAKE, smoothing), real + fake)


def test_g_losses_are_the_papers() -> None:
    D = FAKE.sigmoid()
    torch.testing.assert_close(LOSSES["minimax"].G(FAKE), (1 - D).log())
    torch.testing.assert_close(LOSSES["non_saturating"].G(FAKE), -D.log())


@pytest.mark.parametrize(
    ("name", "d_loss", "g_loss"),  # worked out by hand for the logits above
    [
        ("least_squares", [8.5, 3.125, 0.5, 13.0, 870.5], [0.0, 4.5, 0.5, 8.0, 480.5]),
        ("hinge", [6.0, 1.5, 2.0, 6.0, 0.0], [-1.0, 2.0, 0.0, -5.0, 30.0]),
        ("wasserstein", [4.0, -1.5, 0.0, 3.0, -60.0], [-1.0, 2.0, 0.0, -5.0, 30.0]),
    ],
)
def test_losses_worked_out_by_hand(name: str, d_loss: list[float], g_loss: list[float]) -> None:
    torch.testing.assert_close(LOSSES[name].D(REAL, FAKE), torch.tensor(d_loss, dtype=torch.float64))
    torch.testing.assert_close(LOSSES[name].G(FAKE), torch.tensor(g_loss, dtype=torch.float64))


def test_smoothed_least_squares() -> None:
    torch.testing.assert_close(LOSSES["least_squares"].D(REAL[3:4], FAKE[3:4], 0.1), 0.5 * FAKE.new_tensor([1.21 + 25]))


def test_relativistic_loss_is_cross_entropy_of_the_difference() -> None:
    loss = LOSSES["relativistic"]
    ones = torch.ones_like(REAL)
    expected = F.binary_cross_entropy_with_logits(REAL - FAKE, ones, reduction="none")
    torch.testing.assert_close(loss.D(REAL, FAKE), expected)
    expected = F.binary_cross_entropy_with_logits(FAKE - REAL, ones, reduction="none")
    torch.testing.assert_close(loss.G(FAKE, REAL), expected)


def test_losses_stay_finite_where_the_textbook_takes_the_logarithm_of_zero() -> None:
    far = torch.tensor([-1e4, 1e4], requires_grad=True)
    for loss in LOSSES.values():
        total = loss.D(far, -far).sum() + (loss.G(far, -far) if loss.paired else loss.G(far)).sum()
        (gradient,) = torch.autograd.grad(total, far)
        assert torch.isfinite(total)
        assert torch.isfinite(gradient).all()


def test_gradient_norm_of_a_linear_d_is_that_of_its_weight() -> None:
    D = nn.Sequential(nn.Flatten(), nn.Linear(12, 1), nn.Flatten(0))
    x = torch.randn(5, 3, 2, 2, requires_grad=True)
    expected = D[1].weight.square().sum().expand(5)
    torch.testing.assert_close(squared_gradient_norms(D(x), x)[0], expected)


def test_gradient_norm_against_finite_differences() -> None:
    torch.manual_seed(0)
    D = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1), nn.Flatten(0)).double()
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    step = 1e-6
    slopes = torch.stack([(D(x + step * e) - D(x - step * e)) / (2 * step) for e in torch.eye(4, dtype=torch.float64)])
    torch.testing.assert_close(squared_gradient_norms(D(x), x)[0], slopes.square().sum(0), rtol=1e-7, atol=1e-9)


def test_gradient_norm_can_be_differentiated_again() -> None:
    D = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1), nn.Flatten(0)).double()
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)

    def penalty(weight: torch.Tensor) -> torch.Tensor:
        parameters = {**dict(D.named_parameters()), "0.weight": weight}
        return squared_gradient_norms(torch.func.functional_call(D, parameters, x), x)[0]

    torch.autograd.gradcheck(penalty, D[0].weight.detach().clone().requires_grad_(True))


def test_gradient_penalty_of_a_linear_d() -> None:
    D = nn.Sequential(nn.Flatten(), nn.Linear(12, 1), nn.Flatten(0))
    x = torch.randn(5, 3, 2, 2, requires_grad=True)
    expected = (D[1].weight.norm() - 1).square().expand(5)
    torch.testing.assert_close(gradient_penalty(D(x), x), expected)


def test_gradient_penalty_of_a_flat_d_has_a_gradient() -> None:
    D = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))
    nn.init.zeros_(D[0].weight)
    x = torch.randn(3, 4, requires_grad=True)
    penalty = gradient_penalty(D(x), x).sum()
    (gradient,) = torch.autograd.grad(penalty, D[0].weight)
    assert penalty.item() == pytest.approx(3, rel=1e-4)
    assert torch.isfinite(gradient).all()


def test_interpolates_lie_between() -> None:
    real, fake = torch.zeros(3, 1, 2, 2), torch.ones(3, 1, 2, 2)
    x = interpolate(real, fake, torch.tensor([0.0, 0.25, 1.0]))
    torch.testing.assert_close(x[:, 0, 0, 0], torch.tensor([1.0, 0.75, 0.0]))


def test_clipped_weights() -> None:
    D = nn.Linear(4, 2)
    before = D.weight.detach().clone()
    clip_weights(D.parameters(), 0.1)
    torch.testing.assert_close(D.weight.detach(), before.clamp(-0.1, 0.1))


def test_ema_forgets_half_in_one_half_life() -> None:
    average, model = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    average.weight.data.fill_(1.0)
    average.running_mean.fill_(1.0)  # type: ignore[union-attr]
    model.weight.data.zero_()
    model.num_batches_tracked.fill_(7)  # type: ignore[union-attr]
    for nimg in range(0, 6400, 64):
        MovingAverage(average, model).follow(torch.tensor(1 - Average(6400, 0).beta(64, nimg)))
    torch.testing.assert_close(average.weight.data, torch.full((3,), 0.5))
    torch.testing.assert_close(average.running_mean, torch.full((3,), 0.5))
    assert average.num_batches_tracked == 7


def test_ema_ramp_starts_from_the_weights_and_reaches_the_half_life() -> None:
    assert Average(1e4, 0.05).beta(64, 0) == 0.0
    assert Average(1e4, 0.05).beta(64, 64_000) == pytest.approx(0.5 ** (64 / 3200))
    assert Average(1e4, 0.05).beta(64, 10**6) == pytest.approx(0.5 ** (64 / 1e4))


def test_learning_rates() -> None:
    def at(nimg: int, **settings: object) -> float:
        return optimizer_schedule(Optimizer(lr=1.0, **settings), 1000)(nimg)["lr"]  # type: ignore[arg-type]

    assert [at(n) for n in (0, 500, 1000)] == [1.0, 1.0, 1.0]
    assert [at(n, schedule="linear", lr_final=0.5) for n in (0, 500, 1000, 2000)] == [1.0, 0.75, 0.5, 0.5]
    quarter = (1 + math.cos(math.pi / 4)) / 2
    assert [at(n, schedule="cosine") for n in (0, 250, 500, 1000)] == pytest.approx([1.0, quarter, 0.5, 0.0])
    assert [at(n, warmup_kimg=0.1) for n in (0, 50, 100, 900)] == [0.0, 0.5, 1.0, 1.0]
    assert [at(n, schedule="linear", schedule_kimg=0.5) for n in (0, 250, 500, 1000)] == [1.0, 0.5, 0.0, 0.0]


def test_beta2_follows_the_schedule() -> None:
    at = optimizer_schedule(Optimizer(betas=[0, 0.9], beta2_final=0.99, schedule="cosine", lr_final=1e-4), 1000)
    assert [at(n)["betas"] for n in (0, 500, 1000)] == [(0, 0.9), (0, pytest.approx(0.945)), (0, pytest.approx(0.99))]
    assert "betas" not in optimizer_schedule(Optimizer(), 1000)(0)


def test_average_grows_on_half_a_cosine() -> None:
    for nimg, share in ((250, (1 - math.cos(math.pi / 4)) / 2), (500, 0.5), (2000, 1.0)):
        beta = Average(1e4, 0, 1000).beta(64, nimg)
        assert beta == pytest.approx(0.5 ** (64 / (1e4 * share)))
    assert Average(1e4, 0, 1000).beta(64, 0) == 0.0


def test_stages_of_growth() -> None:
    """Figure 2 of Karras et al. 2018: a size alone, then each next one faded in and trained."""
    at = stages(Config(growth=Growth(stable_kimg=3, fade_kimg=2, batch_sizes=[8, 4, 2])), last=2)
    seen = [(n, at(n).number, at(n).alpha, at(n).batch_size) for n in (0, 2999, 3000, 4000, 5000, 7999, 8000, 9500)]
    assert seen == [
        *[(0, 0, 1.0, 8), (2999, 0, 1.0, 8)],
        *[(3000, 1, 0.0, 4), (4000, 1, 0.5, 4), (5000, 1, 1.0, 4), (7999, 1, 1.0, 4)],
        *[(8000, 2, 0.0, 2), (9500, 2, 0.75, 2)],
    ]
    assert (at(10**6).number, at(10**6).alpha) == (2, 1.0)
    whole = stages(Config(), last=2)(0)
    assert (whole.number, whole.alpha, whole.batch_size) == (2, 1.0, 64), "no growth: the whole network"
