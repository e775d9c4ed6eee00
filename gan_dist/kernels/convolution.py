"""Convolutions whose second derivatives are single kernels.

A penalty on D's gradient differentiates D twice. torch's second derivative of a convolution runs one convolution for
each group, and computes the weight's part of it as a convolution whose kernel is as large as the image. Here the
convolution, its input's gradient and its weight's gradient are three functions, each linear in both of its arguments.
The derivatives of each are the other two, so that any derivative of any order is one call for all groups.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gan_dist.kernels.gradients import wanted

aten = torch.ops.aten


class twice_differentiable(TorchFunctionMode):
    """A context in which the convolutions of a forward pass, plain and transposed ones, are the ones of this file.

    `nn.Conv2d`, `nn.ConvTranspose2d` and their functions stay as they are in the networks. What this file does not
    compute (a padding given as a word, an image without a batch) is left to torch.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _INSTEAD.get(func, func)(*args, **(kwargs or {}))


class _Geometry(NamedTuple):
    """How a convolution walks over its input; pairs are (height, width)."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int

    def reached(self, smaller: torch.Size, kernel: torch.Size) -> list[int]:
        """Rows and columns of the larger map that a kernel (C', C, h, w) reaches which makes the smaller one of it."""
        steps = zip(smaller[2:], kernel[2:], self.stride, self.padding, self.dilation)
        return [(n - 1) * s - 2 * p + d * (k - 1) + 1 for n, k, s, p, d in steps]


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """`torch.nn.functional.conv2d`: input (N, C, H, W) and weight (C', C / groups, h, w) to (N, C', H', W')."""
    if isinstance(padding, str) or input.ndim != 4:
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    geometry = _Geometry(_pair(stride), _pair(padding), _pair(dilation), groups)
    x, weight, bias = _cast(input, weight, bias)
    return _Convolution.apply(*_in_one_layout(x, weight), bias, geometry)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    """`torch.nn.functional.conv_transpose2d`: input (N, C, H, W), weight (C, C' / groups, h, w) to (N, C', H', W').

    It is the gradient of a convolution from C' to C channels with regard to its input, unless the output is padded by a
    whole stride or more.
    """
    geometry = _Geometry(_pair(stride), _pair(padding), _pair(dilation), groups)
    padded = _pair(output_padding)
    if input.ndim != 4 or any(more >= step for more, step in zip(padded, geometry.stride)):
        return torch.conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation)
    x, weight, bias = _cast(input, weight, bias)
    size = [n + more for n, more in zip(geometry.reached(x.shape, weight.shape), padded)]
    shape = torch.Size([len(x), weight.shape[1] * groups, *size])
    return _InputGradient.apply(*_in_one_layout(x, weight), bias, geometry, shape)


_INSTEAD: dict[Any, Callable[..., Tensor]] = {
    torch.conv2d: conv2d,
    torch.conv_transpose2d: conv_transpose2d,
}


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else [*value] * (2 // len(value))


def _cast(*tensors: Tensor | None) -> list[Any]:
    """Under autocast all arguments in its precision, as autocast itself casts those of torch's convolutions.

    autocast does not act inside an autograd function's backward pass, so what that sees must be cast before.
    """
    kind = tensors[0].device.type  # type: ignore[union-attr]
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return [*tensors]
    dtype = torch.get_autocast_dtype(kind)
    return [t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in tensors]


def _in_one_layout(*tensors: Tensor) -> list[Tensor]:
    """All in channels_last if one of them is, else all contiguous: cuDNN would transpose them in each call."""
    layout = torch.channels_last if any(map(_is_channels_last, tensors)) else torch.contiguous_format
    return [tensor.contiguous(memory_format=layout) for tensor in tensors]


def _is_channels_last(t: Tensor) -> bool:
    """And could not be called contiguous as well, as a map of one pixel can."""
    return t.shape[2:] != (1, 1) and t.stride(1) == 1 and t.is_contiguous(memory_format=torch.channels_last)


class _Convolution(torch.autograd.Function):
    """x (N, C, H, W), weight (C', C / groups, h, w), bias (C',) or None -> y (N, C', H', W')."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: _Geometry) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        ctx.set_materialize_grads(False)
        stride, padding, dilation, groups = geometry
        return aten.convolution(x, weight, bias, stride, padding, dilation, False, [0, 0], groups)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> tuple[Tensor | None, ...]:
        if g is None:
            return None, None, None, None
        for_x, for_weight, for_bias = (wanted(ctx, i) for i in range(3))
        g, x, weight = _in_one_layout(g, *ctx.saved_tensors)
        return (
            _InputGradient.apply(g, weight, None, ctx.geometry, x.shape) if for_x else None,
            _WeightGradient.apply(g, x, weight.detach(), ctx.geometry) if for_weight else None,
            g.sum((0, 2, 3)) if for_bias else None,
            None,
        )


class _InputGradient(torch.autograd.Function):
    """y (N, C', H', W'), weight (C', C / groups, h, w), bias (C,) or None -> (N, C, H, W), of this `shape`.

    It is a transposed convolution; only a layer that is one has a bias.
    """

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, weight: Tensor, bias: Tensor | None, geometry: _Geometry, shape: torch.Size
    ) -> Tensor:
        ctx.save_for_backward(y, weight)
        ctx.geometry = geometry
        ctx.set_materialize_grads(False)
        stride, padding, dilation, groups = geometry
        output_padding = [n - reached for n, reached in zip(shape[2:], geometry.reached(y.shape, weight.shape))]
        return aten.convolution(y, weight, bias, stride, padding, dilation, True, output_padding, groups)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> tuple[Tensor | None, ...]:
        if g is None:
            return None, None, None, None, None
        for_y, for_weight, for_bias = (wanted(ctx, i) for i in range(3))
        g, y, weight = _in_one_layout(g, *ctx.saved_tensors)
        return (
            _Convolution.apply(g, weight, None, ctx.geometry) if for_y else None,
            _WeightGradient.apply(y, g, weight.detach(), ctx.geometry) if for_weight else None,
            g.sum((0, 2, 3)) if for_bias else None,
            None,
            None,
        )


class _WeightGradient(torch.autograd.Function):
    """y (N, C', H', W'), x (N, C, H, W) -> (C', C / groups, h, w), in shape and layout like the `weight`."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, weight: Tensor, geometry: _Geometry) -> Tensor:
        ctx.save_for_backward(y, x)
        ctx.geometry = geometry
        ctx.set_materialize_grads(False)
        stride, padding, dilation, groups = geometry
        only_weight = [False, True, False]
        return aten.convolution_backward(
            y, x, weight, None, stride, padding, dilation, False, [0, 0], groups, only_weight
        )[1]

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> tuple[Tensor | None, ...]:
        if g is None:
            return None, None, None, None
        for_y, for_x, *_ = ctx.needs_input_grad
        g, y, x = _in_one_layout(g, *ctx.saved_tensors)
        return (
            _Convolution.apply(x, g, None, ctx.geometry) if for_y else None,
            _InputGradient.apply(y, g, None, ctx.geometry, x.shape) if for_x else None,
            None,
            None,
        )
