"""Compile a loss together with its gradient: the forward pass and all derivatives become one compiled graph.

torch.compile cannot compile a network that is differentiated twice, as a gradient penalty does. So the loss is traced
here with its gradient as a list of operations on tensors, and this list is compiled. Losses, penalties and networks
need no change.

The list contains the values of all Python numbers as they were when it was traced. What changes during a run must be a
tensor among the inputs, or part of the key of the loss.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_unflatten

from gan_dist.engine.stats import Figures
from gan_dist.errors import Interrupted
from gan_dist.kernels.switches import deterministic
from gan_dist.parallel.distributed import Distributed
from gan_dist.parallel.wrapped import WrappedNetwork

log = logging.getLogger(__name__)

# These operators change running means without saying so to the compiler. Operators that say so take their place.
_NORMS = [torch.ops.aten.native_batch_norm, torch.ops.aten.cudnn_batch_norm, torch.ops.aten.miopen_batch_norm]


class CompiledGradients:
    """Computes the gradients of losses for the weights of one network, each loss as one compiled graph.

    Args:
        name: what the losses are called in the log.
        network: the network whose weights are trained.
        networks: all networks that the losses use.
        dist: the processes. They compile together, before they exchange anything.
    """

    def __init__(self, name: str, network: WrappedNetwork, networks: list[nn.Module], dist: Distributed) -> None:
        self._name, self._network, self._dist = name, network, dist
        self._networks = nn.ModuleList(networks)
        self._graphs: dict[Hashable, Traced] = {}
        self._sums: list[Tensor] = []  # the gradients of the micro-batches so far
        self._trained: list[nn.Parameter] = []  # the weights that they belong to

    def add(
        self, loss: Callable[..., tuple[Tensor, Figures]], key: Hashable, inputs: tuple[Any, ...], weight: Tensor
    ) -> Figures | None:
        """Compute a loss of a micro-batch and its gradient, and add this to the gradients of earlier micro-batches.

        Args:
            loss: a function of `inputs` and of the networks. It returns a scalar, and scalars for the log.
            key: what the loss depends on, except tensors and what stays the same during the run.
            inputs: tensors, or None, in tuples.
            weight: a factor of the gradient, a tensor without dimensions.

        Returns:
            The scalars for the log; None if the loss cannot be compiled.
        """
        flat, form = tree_flatten((inputs, weight))
        tensors = [x for x in flat if isinstance(x, Tensor)]
        key = (key, form, *((x.shape, x.dtype) for x in tensors))
        if key not in self._graphs and not self._compile(key, loss, flat, form, tensors):
            if self._sums:
                self.hand_over()
            return None
        gradients, figures = self._graphs[key](tensors)
        if self._sums:
            torch._foreach_add_(self._sums, gradients)
        else:
            self._sums, self._trained = gradients, self._graphs[key].trained
        return figures

    def hand_over(self) -> None:
        """Give the gradients to the weights, averaged over the processes. Call this after the last micro-batch."""
        self._network.hand_over(self._trained, self._sums)
        self._sums = []

    def _compile(
        self, key: Hashable, loss: Callable[..., Any], flat: list[Any], form: Any, tensors: list[Tensor]
    ) -> bool:
        """Trace and compile a loss, in all processes together; returns False if one of them cannot."""
        start, error = time.perf_counter(), None
        try:
            with self._network.without_wrapper():
                graph = trace(loss, self._networks, self._network.network, flat, form)
            graph.warm_up(tensors)
            self._graphs[key] = graph
        except Interrupted:
            raise
        except Exception as raised:  # compilers raise errors of many types
            error = raised
        compiled = self._dist.all_agree(error is None)
        if self._dist.is_main and compiled:
            log.info("compiled %s in %.0f s", self._name, time.perf_counter() - start)
        elif self._dist.is_main:
            words = " ".join(str(error or "another process cannot do it").split())[:150]
            log.warning("train.compile: the losses are not compiled, and run as they are: %s", words)
        return compiled


@dataclass
class Traced:
    """A loss with its gradient as a compiled function of tensors.

    Attributes:
        run: the function.
        state: the weights and buffers of the networks, which are its first arguments.
        trained: the weights for which it computes gradients.
        names: the names of its last results, which are for the log.
    """

    run: Callable[..., list[Tensor]]
    state: list[Tensor]
    trained: list[nn.Parameter]
    names: list[str]

    def __call__(self, inputs: list[Tensor]) -> tuple[list[Tensor], Figures]:
        """Return the gradients, and the scalars for the log."""
        with torch.no_grad(), deterministic():
            results = self.run(*self.state, *inputs)
        return results[: len(self.trained)], dict(zip(self.names, results[len(self.trained) :]))

    def warm_up(self, inputs: list[Tensor]) -> None:
        """Compile by a first call, after which the buffers are as before."""
        before = [tensor.clone() for tensor in self.state]
        self(inputs)
        torch._foreach_copy_(self.state, before)


def trace(
    loss: Callable[..., tuple[Tensor, Figures]], networks: nn.ModuleList, trained: nn.Module, flat: list[Any], form: Any
) -> Traced:
    """Trace a loss with its gradient. Nothing is computed, and the networks do not change.

    Args:
        loss: a function of inputs and of the networks. It returns a scalar, and scalars for the log.
        networks: all networks that it uses.
        trained: the network for whose weights the gradient is needed.
        flat, form: the inputs of the loss and the factor of its gradient, as `tree_flatten` returns them.
    """
    call = _Call(loss, networks)
    parameters, buffers = dict(call.named_parameters()), dict(call.named_buffers())
    names, state = [*parameters, *buffers], [t.detach() for t in (*parameters.values(), *buffers.values())]
    ids = {id(parameter) for parameter in trained.parameters() if parameter.requires_grad}
    wanted = [name for name, parameter in parameters.items() if id(parameter) in ids]
    places = [i for i, x in enumerate(flat) if isinstance(x, Tensor)]
    reached: list[bool] = []
    figures: list[str] = []

    def gradient(*tensors: Tensor) -> list[Tensor]:
        """The state of the networks and the inputs -> the gradients and the scalars for the log."""
        of_networks = dict(zip(names, tensors))
        # Only leaves without a history can be differentiated for: with one, the graph would get a second backward pass.
        leaves = {name: of_networks[name].detach().requires_grad_() for name in wanted}
        inputs, weight = tree_unflatten(_put(flat, places, tensors[len(names) :]), form)
        value, found = torch.func.functional_call(call, {**of_networks, **leaves}, inputs)
        gradients = torch.autograd.grad(value * weight, [*leaves.values()], allow_unused=True)
        reached[:], figures[:] = [g is not None for g in gradients], found
        return [g for g in gradients if g is not None] + [value.detach() for value in found.values()]

    examples = [*state, *(flat[i] for i in places)]
    # In fake mode tensors have shapes but no values. Otherwise the first trace would change running means.
    norms: Any = torch._decomp.get_decompositions(_NORMS)
    graph = make_fx(gradient, decomposition_table=norms, tracing_mode="fake")(*examples)
    run = torch.compile(graph, fullgraph=True, dynamic=False)
    return Traced(run, state, [parameters[n] for n, there in zip(wanted, reached) if there], figures)


class _Call(nn.Module):
    """Calls a function that uses some networks. `functional_call` can then give them other weights."""

    def __init__(self, function: Callable[..., Any], networks: nn.ModuleList) -> None:
        super().__init__()
        self.function = function
        self.add_module("networks", networks)

    def forward(self, *inputs: Any) -> Any:
        return self.function(*inputs)


def _put(items: list[Any], places: list[int], values: Any) -> list[Any]:
    """Return a list with some items replaced."""
    replaced = dict(zip(places, values))
    return [replaced.get(i, item) for i, item in enumerate(items)]
