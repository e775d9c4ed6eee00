"""What changes while a run goes on, as functions of images seen."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gan_dist.settings.schema import Growth, Optimizer


def course(config: Optimizer, total_nimg: int) -> Callable[[int], float]:
    """Images seen -> how far an optimizer's schedule has come: from 0 to 1, along a line or half a cosine."""
    length = config.schedule_kimg * 1000 or total_nimg

    def at(nimg: int) -> float:
        progress = min(nimg / length, 1.0)
        shapes = {"constant": 0.0, "linear": progress, "cosine": (1 - math.cos(math.pi * progress)) / 2}
        return shapes[config.schedule]

    return at


def optimizer_schedule(config: Optimizer, total_nimg: int) -> Callable[[int], dict[str, Any]]:
    """Images seen -> an optimizer's settings: `lr`, after a warm-up from 0, and `betas` if the second one changes."""
    at, warmup = course(config, total_nimg), config.warmup_kimg * 1000

    def settings(nimg: int) -> dict[str, Any]:
        lr = config.lr + (config.lr_final - config.lr) * at(nimg)
        found: dict[str, Any] = {"lr": lr * min(nimg / warmup, 1.0) if warmup else lr}
        if config.beta2_final:
            beta1, beta2 = config.betas
            found["betas"] = (beta1, beta2 + (config.beta2_final - beta2) * at(nimg))
        return found

    return settings


@dataclass(frozen=True)
class Stage:
    """What is trained at one moment: see `gan_dist.models.Growing`; a network that doesn't grow is in stage 0."""

    number: int
    alpha: float
    batch_size: int


def stages(config: Growth, batch_size: int, last: int) -> Callable[[int], Stage]:
    """Images seen -> stage of growth, from 0 to `last`.

    Each but the first begins with a fade (Karras et al. 2018, "Progressive growing of GANs", figure 2).
    """
    sizes = config.batch_sizes or [batch_size] * (last + 1)
    stable, fade = config.stable_kimg * 1000, config.fade_kimg * 1000

    def at(nimg: int) -> Stage:
        if not stable:
            return Stage(last, 1.0, batch_size)
        number = min(int((nimg + fade) // (fade + stable)), last)
        since = nimg + fade - number * (fade + stable)
        return Stage(number, min(since / fade, 1.0) if fade and number else 1.0, sizes[number])

    return at
