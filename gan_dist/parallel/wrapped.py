"""Networks in DistributedDataParallel, the wrapper that averages gradients over all processes."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from torch import nn

from gan_dist.parallel.distributed import Distributed


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

    def __call__(self, *arguments: Any) -> Any:
        return self.wrapper(*arguments)

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
