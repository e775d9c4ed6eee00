"""Update the weights of one network: compute gradients, look for non-finite ones, and step the optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gan_dist.checkpoint.state import State
from gan_dist.engine.stats import RunningMeans
from gan_dist.parallel.distributed import Distributed

Schedule = Callable[[int], dict[str, Any]]  # a function from nimg to settings for an optimizer's parameter groups


class Update:
    """Updates one network, "G" or "D". Per step, call `begin`, then `backward` for each micro-batch, then `step`.

    Args:
        name: "G" or "D".
        state: the state of the run, which holds the network, its optimizer and, in fp16, its loss scale.
        schedule: a function from nimg to the optimizer's settings.
        dist: the processes.
        stats: gets the gradient norm of each step.
        skip_nonfinite: if a gradient is not finite, leave the weights unchanged.
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
        """Begin a step: delete the gradients of the previous step, and set learning rate and betas.

        Args:
            nimg: number of images seen so far.
        """
        self.optimizer.optimizer.zero_grad()
        for group in self.optimizer.optimizer.param_groups:
            group.update(self.schedule(nimg))

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a scalar loss to the gradients of the earlier micro-batches."""
        self.dist.backward(loss, self.optimizer)

    def step(self) -> Tensor:
        """Step the optimizer, and return the norm of the whole gradient, a scalar on the device."""
        self.dist.unscale(self.optimizer)
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        self.stats.add(f"grad_norm_{self.name}", norm)
        broken = ~norm.isfinite()
        if self.skip_nonfinite or self.optimizer.scaler:
            self.stats.add(f"skipped_{self.name}", broken.float())
        # In fp16 the GradScaler skips the step after an overflow, and halves this optimizer's loss scale.
        if self.skip_nonfinite and not self.optimizer.scaler:
            if self.optimizer.optimizer.defaults.get("fused"):
                # The fused kernel reads `found_inf` and skips the step itself, so the host need not wait for the norm.
                self.optimizer.optimizer.found_inf = broken.float()
            elif broken:
                return norm
        self.optimizer.step()
        return norm
