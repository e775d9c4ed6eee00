"""Exponential moving average of the generator, with its half-life in images."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


def ema_beta(batch: int, nimg: int, half_life: float, rampup: float, growth: float = 0.0) -> float:
    """The weight of the old average, 0.5^(batch / half-life), the half-life being at most `rampup` times `nimg` images.

    0 at the start of training with a ramp: the average starts from the weights themselves. (Karras et al. 2020,
    "Training GANs with limited data", whose code has this ramp.) With `growth`, the half-life grows from 0 on half a
    cosine over so many images (Huang et al. 2024, whose code has it).
    """
    if growth:
        half_life *= (1 - math.cos(math.pi * min(nimg / growth, 1.0))) / 2
    if rampup:
        half_life = min(half_life, nimg * rampup)
    return 0.5 ** (batch / half_life) if half_life > 0 else 0.0


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
