"""Networks in the wrapper that averages their gradients over all processes, DistributedDataParallel."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from torch import nn

from gan_dist.parallel.distributed import Distributed


class WrappedNetwork:
    """One network with its wrapper. To call the network itself computes the same, but averages no gradients.

    Attributes:
        network: without the wrapper. Checkpoints, averages and optimizers have to do with it alone.
        wrapper: around the network, made by `renew`.
    """

    wrapper: nn.Module

    def __init__(self, network: nn.Module, dist: Distributed) -> None:
        self.network, self._dist = network, dist

    def __call__(self, *arguments: Any) -> Any:
        return self.wrapper(*arguments)

    def renew(self) -> None:
        """Wrap the network, anew if other parameters of it are trained from now on."""
        if hasattr(self, "wrapper"):
            self._dist.release(self.wrapper)
        self.wrapper = self._dist.prepare_model(self.network)

    def micro_batch(self, last: bool) -> AbstractContextManager:
        """Around forward and backward of one micro-batch: only the last one averages gradients over processes."""
        return self._dist.micro_batch(self.wrapper, last)

    def twice_differentiable(self, needed: bool = True) -> AbstractContextManager:
        """See `gan_dist.parallel.distributed.Distributed.twice_differentiable`."""
        return self._dist.twice_differentiable(self.wrapper, needed)


class Wrapped(NamedTuple):
    """Both networks."""

    G: WrappedNetwork
    D: WrappedNetwork
