"""Networks in DistributedDataParallel, the wrapper that averages gradients over all processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gan_dist.parallel.distributed import Distributed


class _HandOver(torch.autograd.Function):
    """A scalar whose gradients for the parameters are given."""

    @staticmethod
    def forward(ctx: Any, gradients: Sequence[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return parameters[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.gradients


class WrappedNetwork:
    """A network together with its wrapper. A call runs the wrapper.

    A call of the network itself computes the same, but its gradients are not averaged over the processes.

    Args:
        network: the network, on the device.
        dist: the processes.

    Attributes:
        network: the network without the wrapper, for checkpoints, G_ema and optimizers.
        wrapper: the wrapped network. `renew` makes it, so call `renew` before anything else.
    """

    wrapper: nn.Module

    def __init__(self, network: nn.Module, dist: Distributed) -> None:
        self.network, self._dist = network, dist
        self._called: nn.Module | None = None  # what a call runs; None for the wrapper

    def __call__(self, *arguments: Any) -> Any:
        return (self._called or self.wrapper)(*arguments)

    @contextmanager
    def without_wrapper(self) -> Iterator[None]:
        """A context in which a call runs the network itself."""
        self._called = self.network
        try:
            yield
        finally:
            self._called = None

    def hand_over(self, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> None:
        """Add gradients that were computed without the wrapper to those of the parameters, averaged over all processes.

        The wrapper averages gradients only if they come from a backward pass through it. So it is called once with a
        function in place of the network whose backward pass returns the gradients.
        """
        forward = self.network.forward
        self.network.forward = lambda: _HandOver.apply(gradients, *parameters)
        try:
            self.wrapper().backward()
        finally:
            self.network.forward = forward

    def renew(self) -> None:
        """Wrap the network. Call this again when other parameters of the network are to be trained."""
        if hasattr(self, "wrapper"):
            self._dist.release(self.wrapper)
        self.wrapper = self._dist.prepare_model(self.network)

    def micro_batch(self, last: bool) -> AbstractContextManager:
        """A context for forward and backward of one micro-batch. Only the last micro-batch makes the all-reduce."""
        return self._dist.micro_batch(self.wrapper, last)

    def twice_differentiable(self, needed: bool = True) -> AbstractContextManager:
        """See `gan_dist.parallel.distributed.Distributed.twice_differentiable`."""
        return self._dist.twice_differentiable(self.wrapper, needed)


class Wrapped(NamedTuple):
    """G and D with their wrappers."""

    G: WrappedNetwork
    D: WrappedNetwork
