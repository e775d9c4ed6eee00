"""Settings of an optimizer that change while a run goes on, as functions of images seen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Progress:
    """Images seen -> how far a schedule has come, from 0 to 1.

    Attributes:
        shape: "constant" (always 0), "linear", or "cosine" (half a cosine).
        length: images after which it has come to its end.
    """

    shape: str
    length: float

    def __call__(self, nimg: int) -> float:
        passed = min(nimg / self.length, 1.0)
        return {"constant": 0.0, "linear": passed, "cosine": (1 - math.cos(math.pi * passed)) / 2}[self.shape]


@dataclass(frozen=True)
class OptimizerSchedule:
    """Images seen -> an optimizer's settings: `lr`, and `betas` if the second one changes.

    Attributes:
        lr, lr_final: learning rate at the start and at the end of `progress`.
        warmup: images over which the learning rate is raised from 0 at the start; 0: none.
        betas: at the start, for an optimizer that has them.
        beta2_final: the second one at the end of `progress`; 0: it does not change.
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
