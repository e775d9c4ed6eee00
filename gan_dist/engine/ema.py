"""G_ema, the exponential moving average (EMA) of G's weights. Its half-life is measured in images seen."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


@dataclass(frozen=True)
class Average:
    """How fast G_ema follows G.

    Attributes:
        half_life: number of images after which the old average counts half as much.
        rampup: early in training, the half-life is at most this share of the images seen so far; 0 for no ramp-up. It
            is in the code of Karras et al. 2020, "Training generative adversarial networks with limited data".
        growth: number of images over which the half-life grows from 0 to `half_life` along half a cosine; 0 if it does
            not grow. It is in the code of Huang et al. 2024.
    """

    half_life: float
    rampup: float = 0.0
    growth: float = 0.0

    def beta(self, batch: int, nimg: int) -> float:
        """Return the weight of the old average, 0.5^(batch / half-life), in [0, 1).

        With `rampup` or `growth` it is 0 at the start of training, so the first average is a copy of G's weights.

        Args:
            batch: number of images in the iteration.
            nimg: number of images seen before the iteration.
        """
        half_life = self.half_life
        if self.growth:
            half_life *= (1 - math.cos(math.pi * min(nimg / self.growth, 1.0))) / 2
        if self.rampup:
            half_life = min(half_life, nimg * self.rampup)
        return 0.5 ** (batch / half_life) if half_life > 0 else 0.0

    def update(self, average: nn.Module, model: nn.Module, batch: int, nimg: int) -> None:
        """Update the weights of `average`, in place, after an iteration that has changed `model`.

        Args:
            average: G_ema.
            model: G.
            batch: number of images in the iteration.
            nimg: number of images seen before the iteration.
        """
        update_ema(average, model, self.beta(batch, nimg))


@torch.no_grad()
def update_ema(average: nn.Module, model: nn.Module, beta: float) -> None:
    """Set average = beta * average + (1 - beta) * model, in place, for parameters and buffers.

    Integer buffers, such as counters, are copied from `model`.

    Args:
        average: the network to change.
        model: a network with the same parameters and buffers.
        beta: in [0, 1].
    """
    old = [*average.parameters(), *average.buffers()]
    new = [*model.parameters(), *model.buffers()]
    pairs = [(a, m) for a, m in zip(old, new) if a.is_floating_point()]
    get_ema_multi_avg_fn(beta)([a for a, _ in pairs], [m for _, m in pairs], None)
    for a, m in zip(old, new):
        if not a.is_floating_point():
            a.copy_(m)
