"""What a run is at one moment."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn
from torch.amp import GradScaler
from torch.optim import Optimizer


@dataclass
class State:
    """The networks and optimizers themselves, never their wrappers, and how far training has come.

    Attributes:
        scalers: the loss scales of `opt_G` and `opt_D`, in fp16.
        nimg: real images shown to D so far.
        metrics, metrics_nimg: the newest value of each evaluated metric, and when it was measured.
        retries: how often the run went back to a checkpoint, to go on with another data order.
    """

    G: nn.Module
    D: nn.Module
    G_ema: nn.Module
    opt_G: Optimizer
    opt_D: Optimizer
    scalers: dict[str, GradScaler] = field(default_factory=dict)
    nimg: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    metrics_nimg: int = -1
    retries: int = 0
