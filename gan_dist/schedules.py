"""Learning rates as functions of images seen."""

from __future__ import annotations

import math
from collections.abc import Callable

from gan_dist.config import Optimizer


def lr_schedule(config: Optimizer, total_nimg: int) -> Callable[[int], float]:
    """Images seen -> learning rate: warm-up from 0, then constant, a line or half a cosine from `lr` to `lr_final`."""

    def lr(nimg: int) -> float:
        progress = min(nimg / total_nimg, 1.0)
        left = {"constant": 1.0, "linear": 1.0 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}
        rate = config.lr_final + (config.lr - config.lr_final) * left[config.schedule]
        warmup = config.warmup_kimg * 1000
        return rate * min(nimg / warmup, 1.0) if warmup else rate

    return lr
