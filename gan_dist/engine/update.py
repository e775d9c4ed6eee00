"""Update the weights of one network: compute gradients, look for non-finite ones, and step the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gan_dist.checkpoint.state import State
from gan_dist.engine.compiled import CompiledGradients
from gan_dist.engine.scalars import Scalars
from gan_dist.engine.stats import Figures, RunningMeans
from gan_dist.parallel.distributed import Distributed

Schedule = Callable[[int], dict[str, Any]]  # a function from nimg to settings for an optimizer's parameter groups


class Update:
    """Updates one network, "G" or "D".

    Per step, call `begin`, outside of any CUDA graph. Then call `clear`, `backward` for each micro-batch, and `step`.

    Args:
        name: "G" or "D".
        state: the state of the run, which holds the network, its optimizer and, in fp16, its loss scale.
        schedule: a function from nimg to the optimizer's settings.
        dist: the processes.
        stats: gets the gradient norm of each step.
        skip_nonfinite: if a gradient is not finite, leave the weights unchanged.
        scalars: holds the learning rate, under the name "lr_G" or "lr_D".

    Attributes:
        fits_graph: `step` can be part of a CUDA graph. If beta2 changes during the run it cannot, because fused
            optimizers read it on the host.
        keeps_gradients: the gradients stay in the same memory from step to step. A CUDA graph needs this, if it
            computes gradients for a `step` outside of the graph.
        compiled: computes the gradients by compiled code; None if this is not wanted or not possible.
    """

    keeps_gradients = False
    compiled: CompiledGradients | None = None

    def __init__(
        self,
        name: str,
        state: State,
        schedule: Schedule,
        dist: Distributed,
        stats: RunningMeans,
        skip_nonfinite: bool,
        scalars: Scalars,
    ) -> None:
        self.name, self.dist, self.stats, self.scalars = name, dist, stats, scalars
        self.schedule, self.skip_nonfinite = schedule, skip_nonfinite
        optimizer: torch.optim.Optimizer = getattr(state, f"opt_{name}")
        self.parameters: list[torch.nn.Parameter] = [p for group in optimizer.param_groups for p in group["params"]]
        self.optimizer = dist.prepare_optimizer(optimizer, state.scalers.get(name))
        self.fits_graph = "betas" not in schedule(0)

    def begin(self, nimg: int) -> dict[str, float]:
        """Set learning rate and betas. Returns the learning rate for the scalars, under its name.

        Args:
            nimg: number of images seen so far.
        """
        settings, numbers = self.schedule(nimg), {}
        if "lr" in settings and reads_on_device(self.optimizer.optimizer.defaults):
            numbers[f"lr_{self.name}"] = settings["lr"]
            settings["lr"] = self.scalars[f"lr_{self.name}"]
        for group in self.optimizer.optimizer.param_groups:
            group.update(settings)
        return numbers

    def clear(self) -> None:
        """Delete the gradients of the previous step."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if self.keeps_gradients and gradients:
            torch._foreach_zero_(gradients)
        else:
            for parameter in self.parameters:
                parameter.grad = None

    def require_gradients(self, required: bool) -> None:
        """Say if the next losses are to be differentiated for this network's weights. If not, they are frozen."""
        for parameter in self.parameters:
            parameter.requires_grad_(required)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a scalar loss to the gradients of the earlier micro-batches."""
        self.dist.backward(loss, self.optimizer)

    def weight(self, count: int) -> Tensor:
        """Return the factor of the gradient of one of `count` micro-batches, for `compiled`: a scalar on the device."""
        one = torch.ones((), dtype=self.dist.dtype, device=self.dist.device)
        return self.dist.scaled(one / count, self.optimizer)

    def step(self, figures: Figures) -> Tensor:
        """Step the optimizer; returns the norm of the whole gradient, a scalar on the device.

        Args:
            figures: what to add to the running means, together with the norm.
        """
        self.dist.unscale(self.optimizer)
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        figures = {**figures, f"grad_norm_{self.name}": norm}
        broken = ~norm.isfinite() if self.skip_nonfinite or self.optimizer.scaler else None
        if broken is not None:
            figures[f"skipped_{self.name}"] = broken
        self.stats.add(figures)
        # In fp16 the GradScaler skips the step after an overflow, and halves this optimizer's loss scale.
        if broken is not None and not self.optimizer.scaler:
            if self.optimizer.optimizer.defaults.get("fused"):
                # The fused kernel reads `found_inf` and skips the step itself, so the host need not wait for the norm.
                self.optimizer.optimizer.found_inf = broken.float()
            elif broken:
                return norm
        self.optimizer.step()
        return norm


def reads_on_device(arguments: Mapping[str, Any]) -> bool:
    """Tell if an optimizer with these arguments reads its learning rate on the device, not on the host."""
    return bool(arguments.get("fused") or arguments.get("capturable"))
