"""Tell an autograd function which gradients its caller needs.

torch only tells it which of its arguments require a gradient. But a gradient penalty needs D's gradient for the images
only. Without this file the autograd functions of this folder would also compute the gradient for each weight, which is
a third of the work, and torch would throw it away.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

# One variable for all threads, because a backward pass on a GPU runs in another thread than the one that started it.
_inputs: Sequence[Tensor] | None = None


@contextmanager
def with_regard_to(inputs: Sequence[Tensor]) -> Iterator[None]:
    """A context for a call of `torch.autograd.grad` with these inputs: gradients that it does not need are left out."""
    global _inputs
    _inputs = inputs
    try:
        yield
    finally:
        _inputs = None


def wanted(ctx: Any, index: int) -> bool:
    """Tell, inside an autograd function's backward pass, if the gradient for its argument number `index` is needed.

    Args:
        ctx: the function's context.
        index: number of a tensor argument of the function's `forward`, counted from 0 without `ctx`.
    """
    if not ctx.needs_input_grad[index] or _inputs is None:
        return ctx.needs_input_grad[index]
    node = ctx.next_functions[index][0]
    if hasattr(node, "variable"):  # the argument is a leaf of the graph, for example a parameter
        return any(node.variable is tensor for tensor in _inputs)
    return torch._C._will_engine_execute_node(node)
