"""Halve and double maps with the filter [1, 3, 3, 1] in both directions, with derivatives of any order.

The derivative of halving is doubling divided by 4, and the derivative of doubling is halving times 4. Pixels outside
the map count as 0. The result has the memory layout of the argument, contiguous or channels_last.

A depthwise convolution was the fastest method in measurements on a CPU. On a GPU sums of shifted maps were faster than
the derivatives of a convolution; no other method was measured there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def halve(x: Tensor) -> Tensor:
    """Halve maps: (N, C, 2H, 2W) -> (N, C, H, W). Each pixel is the weighted mean of 4x4 pixels."""
    return _Halve.apply(x)


def double(x: Tensor) -> Tensor:
    """Double maps by interpolation: (N, C, H, W) -> (N, C, 2H, 2W). The weights for each pixel have the sum 1."""
    return _Double.apply(x)


class _Halve(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        if _by_convolution(x):
            return F.conv2d(x, _filter(x) / 4, stride=2, padding=1, groups=x.shape[1])
        return _in_layout_of(x, _halve_by_sums)

    @staticmethod
    def backward(_: Any, g: Tensor) -> Tensor:
        return _Double.apply(g) / 4


class _Double(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        if _by_convolution(x):
            return F.conv_transpose2d(x, _filter(x), stride=2, padding=1, groups=x.shape[1])
        return _in_layout_of(x, _double_by_sums)

    @staticmethod
    def backward(_: Any, g: Tensor) -> Tensor:
        return _Halve.apply(g) * 4


def _by_convolution(x: Tensor) -> bool:
    """Tell if a depthwise convolution is the fastest method: on a CPU, but not in bf16.

    oneDNN's transposed depthwise convolution is very slow in bf16.
    """
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def _filter(x: Tensor) -> Tensor:
    """The filter for each of the C channels of x: (C, 1, 4, 4). Its weights have the sum 4, as doubling needs."""
    row = 1 - (torch.arange(4, dtype=x.dtype) - 1.5).abs() / 2  # [1, 3, 3, 1] / 4
    return (row[:, None] * row).repeat(x.shape[1], 1, 1, 1)


def _in_layout_of(x: Tensor, by_sums: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Apply `by_sums` along the height and the width of x, and return a result with the memory layout of x."""
    if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        return by_sums(by_sums(x.permute(0, 2, 3, 1), 1), 2).permute(0, 3, 1, 2)
    return by_sums(by_sums(x, 2), 3)


def _halve_by_sums(x: Tensor, dim: int) -> Tensor:
    """Halve along one dimension: each pair b, c with its neighbours a, d becomes (a + 3 b + 3 c + d) / 8."""
    x, last = _with_zeros(x, dim), x.shape[dim] - 1
    a, b, c, d = (x[(slice(None),) * dim + (slice(i, last + i, 2),)] for i in range(4))
    return torch.lerp(torch.lerp(a, d, 0.5), torch.lerp(b, c, 0.5), 0.75)


def _double_by_sums(x: Tensor, dim: int) -> Tensor:
    """Double along one dimension: pixel b with its neighbours a, c becomes (a + 3 b) / 4 and (3 b + c) / 4."""
    padded, n = _with_zeros(x, dim), x.shape[dim]
    pairs = [torch.lerp(x, padded.narrow(dim, first, n), 0.25) for first in (0, 2)]
    return torch.stack(pairs, dim + 1).flatten(dim, dim + 1)


def _with_zeros(x: Tensor, dim: int) -> Tensor:
    """Add one row of zeros at both ends of dimension `dim`."""
    return F.pad(x, (0, 0) * (3 - dim) + (1, 1))
