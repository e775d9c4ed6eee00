"""Schedules: the learning rate and betas of an optimizer as functions of nimg, the number of images seen so far."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Progress:
    """A function from nimg to the progress p of a schedule, which goes from 0 to 1.

    Attributes:
        shape: "constant" (p is always 0), "linear" (p = t), or "cosine" (p = (1 - cos(pi t)) / 2), where
            t = min(nimg / length, 1).
        length: length of the schedule in images.
    """

    shape: str
    length: float

    def __call__(self, nimg: int) -> float:
        passed = min(nimg / self.length, 1.0)
        return {"constant": 0.0, "linear": passed, "cosine": (1 - math.cos(math.pi * passed)) / 2}[self.shape]


@dataclass(frozen=True)
class OptimizerSchedule:
    """A function from nimg to the settings of an optimizer: `lr`, and `betas` if beta2 changes.

    Attributes:
        progress: how far the schedule has come.
        lr: learning rate at the start.
        lr_final: learning rate at the end of the schedule.
        warmup: number of images over which the learning rate is raised linearly from 0; 0 for no warm-up.
        betas: (beta1, beta2) at the start, for an optimizer that has them.
        beta2_final: beta2 at the end of the schedule; 0 if beta2 does not change.
    """

    progress: Progress
    lr: float
    lr_final: float
    warmup: float
    betas: tuple[float, ...]
    beta2_final: float

    def __call__(self, nimg: int) -> dict[str, Any]:
        lr = self.lr + (self.lr_final - self.lr) * self.progress(nimg)
        found: dict[str, Any] = {"lr": lr * min(nimg / self.warmup, 1.0) if self.warmup else lr}
        if self.beta2_final:
            beta1, beta2 = self.betas
            found["betas"] = (beta1, beta2 + (self.beta2_final - beta2) * self.progress(nimg))
        return found
