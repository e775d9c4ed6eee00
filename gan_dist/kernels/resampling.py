"""Maps halved and doubled by the filter [1, 3, 3, 1] in both directions, differentiable any number of times.

Each of the two is the other's derivative but for a factor of 4. Outside the map is 0. The result is laid out in memory
(contiguous or channels_last) as the argument is. On a CPU a depthwise convolution is fastest, which was measured. On a
GPU a sum of shifted maps was faster than a convolution's derivatives; other forms were not measured there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def halve(x: Tensor) -> Tensor:
    """Maps (N, C, 2H, 2W) -> (N, C, H, W): each pixel the weighted mean of 4x4."""
    return _Halve.apply(x)


def double(x: Tensor) -> Tensor:
    """Maps (N, C, H, W) -> (N, C, 2H, 2W), interpolated: the weights of each pixel sum up to 1."""
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
    """oneDNN's depthwise convolutions are fast; but its transposed one in bf16 is slower than anything else."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def _filter(x: Tensor) -> Tensor:
    """For each channel (C, 1, 4, 4), with the sum of 4 that doubling needs."""
    row = torch.tensor([1, 3, 3, 1], dtype=x.dtype) / 4
    return (row[:, None] * row).repeat(x.shape[1], 1, 1, 1)


def _in_layout_of(x: Tensor, by_sums: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Apply a sum to both directions of a map, which lies in memory as the result of it does then."""
    if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        return by_sums(by_sums(x.permute(0, 2, 3, 1), 1), 2).permute(0, 3, 1, 2)
    return by_sums(by_sums(x, 2), 3)


def _halve_by_sums(x: Tensor, dim: int) -> Tensor:
    """One direction: (a + 3 b + 3 c + d) / 8 of the four pixels around each pair."""
    x, last = _with_zeros(x, dim), x.shape[dim] - 1
    a, b, c, d = (x[(slice(None),) * dim + (slice(i, last + i, 2),)] for i in range(4))
    return torch.lerp(torch.lerp(a, d, 0.5), torch.lerp(b, c, 0.5), 0.75)


def _double_by_sums(x: Tensor, dim: int) -> Tensor:
    """One direction: between each pixel and the next, 3/4 of the one and 1/4 of the other, and the other way round."""
    padded, n = _with_zeros(x, dim), x.shape[dim]
    pairs = [torch.lerp(x, padded.narrow(dim, first, n), 0.25) for first in (0, 2)]
    return torch.stack(pairs, dim + 1).flatten(dim, dim + 1)


def _with_zeros(x: Tensor, dim: int) -> Tensor:
    """One more row of them at both ends."""
    return F.pad(x, (0, 0) * (3 - dim) + (1, 1))
