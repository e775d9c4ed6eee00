"""Rows of a table by their numbers, with a gradient that has the same bits each time.

torch adds up the gradients of an embedding's rows in whatever order a GPU comes to them, once there are many. Here
they are the product of the labels' one-hot codes with the gradients, which is the same sum in one order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gan_dist.kernels.switches import ieee_fp32


def lookup(table: Tensor, rows: Tensor) -> Tensor:
    """table (K, D) and rows (N,), int64 below K, to (N, D), differentiable any number of times."""
    return _Lookup.apply(table, rows)


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.count = len(table)
        return torch.embedding(table, rows)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return _SumOfRows.apply(g, ctx.saved_tensors[0], ctx.count), None


class _SumOfRows(torch.autograd.Function):
    """g (N, D) -> (K, D): in row k the sum of those whose number is k."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, rows: Tensor, count: int) -> Tensor:
        ctx.save_for_backward(rows)
        codes = torch.arange(count, device=rows.device)[:, None] == rows
        with ieee_fp32():  # 0 and 1 are exact in TF32, but the gradients would be rounded
            return codes.to(g.dtype) @ g

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        return _Lookup.apply(g, ctx.saved_tensors[0]), None, None
