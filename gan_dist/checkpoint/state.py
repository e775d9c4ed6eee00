"""The state of a run, which a checkpoint saves."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn
from torch.amp import GradScaler
from torch.optim import Optimizer


@dataclass
class State:
    """Networks, optimizers and progress of a run.

    Attributes:
        G, D: generator and discriminator, without DistributedDataParallel or any other wrapper.
        G_ema: the exponential moving average of G, which samples and is evaluated.
        opt_G, opt_D: the optimizers, without wrappers.
        scalers: in fp16, the loss scales of the two optimizers, under "G" and "D"; otherwise empty.
        nimg: number of real images shown to D so far.
        metrics: the newest value of each evaluated metric, by name.
        metrics_nimg: value of `nimg` when these metrics were measured; -1 if there are none.
        retries: how often the run has gone back to a checkpoint after a failure. Each time it goes on with another
            order of the data and other latents.
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
