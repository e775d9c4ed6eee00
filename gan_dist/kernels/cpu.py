"""Faster kernels for some layers of a network on a CPU.

The converted layers compute the same function as before, and the names of their weights do not change.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.nn import functional as F

from gan_dist.kernels.gradients import wanted

AVAILABLE = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
LARGE = 2**16  # a linear layer with fewer weights is not converted: calling the other kernel costs more than it saves


def convert(module: nn.Module) -> nn.Module:
    """Let an fp32 network on the CPU compute its linear layers with oneDNN's fastest kernels; returns the same module.

    A network of another precision or on another device is not changed.
    """
    if not AVAILABLE or any(p.device.type != "cpu" or p.dtype != torch.float32 for p in module.parameters()):
        return module
    for child in module.modules():
        if type(child) is nn.Linear and child.weight.numel() >= LARGE:
            child.__class__ = Linear
        if type(child) is nn.ConvTranspose2d and _maps_pixel_to_kernel(child):
            child.__class__ = FirstLayer
    return module


def _maps_pixel_to_kernel(layer: nn.ConvTranspose2d) -> bool:
    """Tell if the layer, which must have no bias, turns an input of one pixel into a map of the size of its kernel."""
    return layer.bias is None and layer.groups == 1 and not any(layer.padding) and layer.dilation == (1, 1)


class Linear(nn.Linear):
    """A linear layer computed by oneDNN: x (N, in_features) -> (N, out_features). `convert` makes it.

    torch multiplies fp32 matrices with MKL, which does not use AVX-512 on processors of other makers than Intel.
    """

    def forward(self, x: Tensor) -> Tensor:
        return _Product.apply(x, self.weight, self.bias) if _eager_fp32(x) else F.linear(x, self.weight, self.bias)


class FirstLayer(nn.ConvTranspose2d):
    """A transposed convolution of one pixel, computed as a matrix product: (N, C, 1, 1) -> (N, C', *kernel_size)."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if x.shape[2:] != (1, 1) or not _eager_fp32(x):
            return super().forward(x, output_size)
        weight = self.weight.permute(2, 3, 1, 0)  # (height, width, C', C), so that the output is in channels_last
        y = _Product.apply(x.flatten(1), weight.flatten(0, 2), None)
        return y.unflatten(1, weight.shape[:3]).permute(0, 3, 1, 2)


def _eager_fp32(x: Tensor) -> bool:
    """Tell if the layer runs in fp32 and is not being traced for a compiler, which has products of its own."""
    return not torch.is_autocast_enabled("cpu") and not isinstance(x, FakeTensor)


class _Product(torch.autograd.Function):
    """a (N, K), b (M, K), bias (M,) or None -> a b^T + bias (N, M), with derivatives of any order."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(a, b)
        return torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors
        return (
            _Product.apply(gradient, b.t(), None) if wanted(ctx, 0) else None,
            _Product.apply(gradient.t(), a.t(), None) if wanted(ctx, 1) else None,
            gradient.sum(0) if wanted(ctx, 2) else None,
        )
