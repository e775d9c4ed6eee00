"""Maps halved and doubled by the filter [1, 3, 3, 1] in both directions, differentiable any number of times.

Each of the two is the other's derivative but for a factor of 4. Outside the map is 0. The result has the layout
(contiguous or channels_last) of the argument. On a CPU a depthwise convolution is fastest, which was measured. On a GPU
a sum of shifted maps was faster than a convolution's derivatives; other forms were not measured there.
"""

from __future__ import annotations

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
        x = F.pad(x, (1, 1, 1, 1))
        return _halve_along(3, _halve_along(2, x))

    @staticmethod
    def backward(_: Any, g: Tensor) -> Tensor:
        return _Double.apply(g) / 4


class _Double(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        if _by_convolution(x):
            return F.conv_transpose2d(x, _filter(x), stride=2, padding=1, groups=x.shape[1])
        return _double_along(3, _double_along(2, x))

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


def _halve_along(dim: int, x: Tensor) -> Tensor:
    """One direction, of a map that has a row of zeros at both ends: (a + 3 b + 3 c + d) / 8 of every other four."""
    last = x.shape[dim] - 3
    a, b, c, d = (_every_other(dim, x, i, last + i) for i in range(4))
    return torch.lerp(torch.lerp(a, d, 0.5), torch.lerp(b, c, 0.5), 0.75)


def _double_along(dim: int, x: Tensor) -> Tensor:
    """One direction: between each pixel and the next, 3/4 of the one and 1/4 of the other, and the other way round."""
    n = x.shape[dim]
    padded = F.pad(x, (0, 0, 1, 1) if dim == 2 else (1, 1))
    shape = [size * 2 if i == dim else size for i, size in enumerate(x.shape)]
    layout = torch.channels_last if x.stride(1) == 1 and x.shape[1] > 1 else torch.contiguous_format
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)
    torch.lerp(x, padded.narrow(dim, 0, n), 0.25, out=_every_other(dim, y, 0))
    torch.lerp(x, padded.narrow(dim, 2, n), 0.25, out=_every_other(dim, y, 1))
    return y


def _every_other(dim: int, x: Tensor, first: int, end: int | None = None) -> Tensor:
    return x[:, :, first:end:2] if dim == 2 else x[:, :, :, first:end:2]
