"""What a run is at one moment."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn
from torch.optim import Optimizer


@dataclass
class State:
    """The networks and optimizers themselves, never their wrappers, and how far training has come.

    Attributes:
        nimg: real images shown to D so far.
        metrics: the newest value of each evaluated metric.
    """

    G: nn.Module
    D: nn.Module
    G_ema: nn.Module
    opt_G: Optimizer
    opt_D: Optimizer
    nimg: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
