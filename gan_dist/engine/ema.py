"""G_ema, the exponential moving average (EMA) of G's weights. Its half-life is measured in images seen."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


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


class MovingAverage:
    """G_ema together with the network that it follows.

    Args:
        average: the network to change, G_ema.
        model: a network with the same parameters and buffers, G.
    """

    def __init__(self, average: nn.Module, model: nn.Module) -> None:
        old, new = ([t.detach() for t in (*m.parameters(), *m.buffers())] for m in (average, model))
        self._old, self._new = ([t for t in tensors if t.is_floating_point()] for tensors in (old, new))
        self._old_counters, self._new_counters = ([t for t in ts if not t.is_floating_point()] for ts in (old, new))

    def follow(self, weight: Tensor) -> None:
        """Set average = average + weight * (model - average), in place, for parameters and buffers.

        Integer buffers, such as counters, are copied from `model`.

        Args:
            weight: 1 - beta, in [0, 1], a tensor without dimensions, with the device and dtype of the weights.
        """
        torch._foreach_lerp_(self._old, self._new, [weight] * len(self._old))
        if self._old_counters:
            torch._foreach_copy_(self._old_counters, self._new_counters)
