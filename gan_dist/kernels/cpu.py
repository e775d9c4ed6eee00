"""What makes a CPU fast: kernels for networks, whose results and names of weights stay what they are, and memory."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gan_dist.kernels.gradients import wanted

AVAILABLE = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # parameters of glibc's mallopt
LARGE = 2**16  # weights of a linear layer from which the other kernel wins back what calling it costs


def convert(module: nn.Module) -> nn.Module:
    """Let an fp32 network on the CPU run its linear layers by oneDNN's fastest kernels; others stay as they are."""
    if not AVAILABLE or any(p.device.type != "cpu" or p.dtype != torch.float32 for p in module.parameters()):
        return module
    for child in module.modules():
        if type(child) is nn.Linear and child.weight.numel() >= LARGE:
            child.__class__ = Linear
        if type(child) is nn.ConvTranspose2d and _plain(child):
            child.__class__ = FirstLayer
    return module


def _plain(layer: nn.ConvTranspose2d) -> bool:
    """It makes of one pixel a map of its kernel's size."""
    return layer.bias is None and layer.groups == 1 and not any(layer.padding) and layer.dilation == (1, 1)


class Linear(nn.Linear):
    """x (N, in_features) -> (N, out_features); made by `convert`.

    torch multiplies fp32 matrices by MKL, which, on other makers' processors than its own, does without AVX-512.
    """

    def forward(self, x: Tensor) -> Tensor:
        return _Product.apply(x, self.weight, self.bias) if _eager() else F.linear(x, self.weight, self.bias)


class FirstLayer(nn.ConvTranspose2d):
    """Of an image of one pixel, a transposed convolution is a product: (N, C, 1, 1) -> (N, C', *kernel_size)."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if x.shape[2:] != (1, 1) or not _eager():
            return super().forward(x, output_size)
        weight = self.weight.permute(2, 3, 1, 0)  # (height, width, C', C): channels_last
        y = _Product.apply(x.flatten(1), weight.flatten(0, 2), None)
        return y.unflatten(1, weight.shape[:3]).permute(0, 3, 1, 2)


def _eager() -> bool:
    """In fp32, and not compiled."""
    return not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()


class _Product(torch.autograd.Function):
    """a (N, K), b (M, K), bias (M,) or None -> a b^T + bias (N, M); can be differentiated any number of times."""

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


def keep_freed_memory() -> None:
    """Let glibc keep what is freed: mapped anew, activations cost a page fault per 4 KiB, and large ones always are."""
    with suppress(AttributeError, TypeError, OSError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)
