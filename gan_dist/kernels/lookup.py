"""An embedding lookup whose gradient is deterministic: every repetition gives the same bits.

On a GPU, torch's own embedding adds up the gradients of many equal labels in an order that changes from run to run.
Here the gradient is the matrix product of the labels' one-hot codes and the incoming gradients, which is the same sum
in a fixed order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gan_dist.kernels.switches import ieee_fp32


def lookup(table: Tensor, rows: Tensor) -> Tensor:
    """Look up rows of a table, with derivatives of any order.

    Args:
        table: (K, D).
        rows: numbers of rows (N,), int64 in 0 … K - 1.

    Returns:
        (N, D).
    """
    return _Lookup.apply(table, rows)


class _Lookup(torch.autograd.Function):
    """table (K, D), rows (N,) -> (N, D)."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.count = len(table)
        return torch.embedding(table, rows)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return _SumOfRows.apply(g, ctx.saved_tensors[0], ctx.count), None


class _SumOfRows(torch.autograd.Function):
    """g (N, D), rows (N,) -> (K, D), with K = `count`: row k is the sum of all g[i] with rows[i] = k."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, rows: Tensor, count: int) -> Tensor:
        ctx.save_for_backward(rows)
        codes = torch.arange(count, device=rows.device)[:, None] == rows
        with ieee_fp32():  # TF32 would round the gradients
            return codes.to(g.dtype) @ g

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        return _Lookup.apply(g, ctx.saved_tensors[0]), None, None
