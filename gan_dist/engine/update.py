"""What an optimizer does in an iteration with the gradients of its network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gan_dist.checkpoint.state import State
from gan_dist.engine.stats import RunningMeans
from gan_dist.parallel.distributed import Distributed

Schedule = Callable[[int], dict[str, Any]]  # images seen -> settings of an optimizer's parameter groups


class Update:
    """The updates of one network, "G" or "D".

    Args:
        name: of the network in the state.
        schedule: images seen -> the optimizer's settings.
        skip_nonfinite: leave the network as it is where a gradient is not finite.
    """

    def __init__(
        self,
        name: str,
        state: State,
        schedule: Schedule,
        dist: Distributed,
        stats: RunningMeans,
        skip_nonfinite: bool,
    ) -> None:
        self.name, self.dist, self.stats = name, dist, stats
        self.network, self.schedule, self.skip_nonfinite = getattr(state, name), schedule, skip_nonfinite
        self.optimizer = dist.prepare_optimizer(getattr(state, f"opt_{name}"), state.scalers.get(name))

    def begin(self, nimg: int) -> None:
        """Forget the gradients of the step before, and set what the schedule says at `nimg` images seen."""
        self.optimizer.optimizer.zero_grad()
        for group in self.optimizer.optimizer.param_groups:
            group.update(self.schedule(nimg))

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a scalar loss to those that are there."""
        self.dist.backward(loss, self.optimizer)

    def step(self) -> Tensor:
        """Change the weights by the gradients that are there; returns the norm of the gradients, a scalar."""
        self.dist.unscale(self.optimizer)
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        self.stats.add(f"grad_norm_{self.name}", norm)
        broken = ~norm.isfinite()
        if self.skip_nonfinite or self.optimizer.scaler:
            self.stats.add(f"skipped_{self.name}", broken.float())
        # In fp16, the loss scale of this optimizer is halved after an overflow, and its step skipped.
        if self.skip_nonfinite and not self.optimizer.scaler:
            if self.optimizer.optimizer.defaults.get("fused"):
                # The fused kernel itself skips the step, so that the host does not wait to know.
                self.optimizer.optimizer.found_inf = broken.float()
            elif broken:
                return norm
        self.optimizer.step()
        return norm
