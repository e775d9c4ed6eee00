"""Which gradients a backward pass is asked for: torch does not tell it to an autograd function.

A penalty takes D's gradient with regard to its images. An autograd function would compute its weight's gradient as
well, a third of the work, only for torch to drop it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_inputs: Sequence[Tensor] | None = None  # one for all threads: backward passes on a GPU run in a thread of their own


@contextmanager
def with_regard_to(inputs: Sequence[Tensor]) -> Iterator[None]:
    """Around an `autograd.grad` with these inputs: what they don't need is left out."""
    global _inputs
    _inputs = inputs
    try:
        yield
    finally:
        _inputs = None


def wanted(ctx: Any, index: int) -> bool:
    """In a backward pass: is the gradient of the function's tensor argument number `index` asked for?"""
    if not ctx.needs_input_grad[index] or _inputs is None:
        return ctx.needs_input_grad[index]
    node = ctx.next_functions[index][0]
    if hasattr(node, "variable"):  # the node that accumulates the gradient of a leaf, as a parameter is one
        return any(node.variable is tensor for tensor in _inputs)
    return torch._C._will_engine_execute_node(node)
