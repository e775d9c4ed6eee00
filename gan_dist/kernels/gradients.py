"""Which gradients a backward pass is asked for: torch does not tell it to an autograd function.

A penalty takes D's gradient with regard to its images. An autograd function would compute its weight's gradient as well,
a third of the work, only for torch to drop it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_of_parameters = True  # one for all threads: backward passes on a GPU run in a thread of their own


@contextmanager
def not_of_parameters() -> Iterator[None]:
    """Around an `autograd.grad` whose inputs are no parameters: gradients of parameters are left out."""
    global _of_parameters
    _of_parameters = False
    try:
        yield
    finally:
        _of_parameters = True


def wanted(ctx: Any, index: int) -> bool:
    """In a backward pass: is the gradient of the function's tensor argument number `index` asked for?"""
    if not ctx.needs_input_grad[index]:
        return False
    if _of_parameters:
        return True
    node = ctx.next_functions[index][0]
    is_parameter = hasattr(node, "variable")  # the node that accumulates a leaf's gradient
    return not is_parameter and torch._C._will_engine_execute_node(node)
