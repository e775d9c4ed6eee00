"""The exponential moving average of the generator's weights, with its half-life in images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


@dataclass(frozen=True)
class Average:
    """How fast the average of G's weights follows G.

    Attributes:
        half_life: images after which the weight of what the average was is halved.
        rampup: early in training, the half-life is shortened to this share of the images seen so far; 0: it is not.
            (Karras et al. 2020, "Training GANs with limited data": their code does so.)
        growth: images over which the half-life grows from 0, along half a cosine; 0: it does not grow.
            (Huang et al. 2024: their code does so.)
    """

    half_life: float
    rampup: float = 0.0
    growth: float = 0.0

    def beta(self, batch: int, nimg: int) -> float:
        """The weight of the old average, 0.5^(batch / half-life), after `nimg` images and a batch of `batch` images.

        It is 0 at the start of training with a ramp: the average then starts from the weights themselves.
        """
        half_life = self.half_life
        if self.growth:
            half_life *= (1 - math.cos(math.pi * min(nimg / self.growth, 1.0))) / 2
        if self.rampup:
            half_life = min(half_life, nimg * self.rampup)
        return 0.5 ** (batch / half_life) if half_life > 0 else 0.0

    def update(self, average: nn.Module, model: nn.Module, batch: int, nimg: int) -> None:
        """Let `average` follow `model` after an iteration of `batch` images, before which `nimg` images were seen."""
        update_ema(average, model, self.beta(batch, nimg))


@torch.no_grad()
def update_ema(average: nn.Module, model: nn.Module, beta: float) -> None:
    """average = beta * average + (1 - beta) * model, for parameters and buffers; integer buffers are copied."""
    old = [*average.parameters(), *average.buffers()]
    new = [*model.parameters(), *model.buffers()]
    pairs = [(a, m) for a, m in zip(old, new) if a.is_floating_point()]
    get_ema_multi_avg_fn(beta)([a for a, _ in pairs], [m for _, m in pairs], None)
    for a, m in zip(old, new):
        if not a.is_floating_point():
            a.copy_(m)
