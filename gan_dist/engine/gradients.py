"""The gradient of a loss for the weights of one network, added up over the micro-batches of a step."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from torch import Tensor

from gan_dist.engine.growth import MicroBatch
from gan_dist.engine.stats import Figures
from gan_dist.parallel.distributed import Distributed
from gan_dist.parallel.wrapped import WrappedNetwork

# A function of tensors that returns a scalar, the loss, and scalars for the log.
Loss = Callable[..., tuple[Tensor, Figures]]


class Gradients:
    """Computes gradients by a backward pass.

    Args:
        network: the network whose weights are trained.
        dist: the processes, over which the gradients are averaged.
    """

    def __init__(self, network: WrappedNetwork, dist: Distributed) -> None:
        self.network, self.dist = network, dist

    def add(
        self, loss: Loss, micro: MicroBatch, key: Hashable, inputs: tuple[Any, ...], optimizer: Any
    ) -> Figures:
        """Compute a loss of a micro-batch, and add its gradient, divided by the number of micro-batches.

        Args:
            loss: a function of `inputs` and of the networks.
            micro: the micro-batch; after the last one the gradients are averaged over the processes.
            key: whatever else `loss` depends on, except the values of tensors.
            inputs: tensors, or None, in tuples.
            optimizer: the prepared optimizer, whose loss scale is used in fp16.

        Returns:
            Figures for the log.
        """
        with self.network.micro_batch(micro.last):
            value, figures = loss(*inputs)
            self.dist.backward(value / micro.count, optimizer)
        return figures
