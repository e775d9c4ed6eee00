"""Convolutions with fast second derivatives, for gradient penalties.

A gradient penalty differentiates D twice. torch's second derivative of a convolution is slow: it runs one convolution
for each group, and it computes the part for the weight as a convolution whose kernel is as large as the image. This
file uses three functions instead: the convolution, the gradient for its input and the gradient for its weight. Each of
them is linear in both of its arguments, and the derivatives of each one are the other two. So every derivative, of any
order, is a single call for all groups.
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
    """A context that replaces torch's 2D convolutions and transposed convolutions by the ones of this file.

    The networks need no change: `nn.Conv2d`, `nn.ConvTranspose2d` and the functions that they call are redirected while
    a forward pass runs in this context. torch still computes what this file does not support: a padding given as a
    string, and an image without a batch dimension.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _REPLACEMENTS.get(func, func)(*args, **(kwargs or {}))


class _Geometry(NamedTuple):
    """Stride, padding and dilation of a convolution, each as [height, width], and its number of groups."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int

    def smallest_input(self, output: torch.Size, kernel: torch.Size) -> list[int]:
        """[height, width] of the smallest input for which a convolution gives an output of this shape.

        Args:
            output: (N, C', H', W').
            kernel: (C', C / groups, h, w).
        """
        steps = zip(output[2:], kernel[2:], self.stride, self.padding, self.dilation)
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
    """Compute `torch.nn.functional.conv2d`, with fast second derivatives.

    Args:
        input: (N, C, H, W).
        weight: (C', C / groups, h, w).
        bias: (C',), or None.
        stride, padding, dilation, groups: as in torch.

    Returns:
        (N, C', H', W').
    """
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
    """Compute `torch.nn.functional.conv_transpose2d`, with fast second derivatives.

    A transposed convolution from C to C' channels is the gradient for the input of a convolution from C' to C channels.
    This does not hold if `output_padding` is a whole stride or more; torch computes this case.

    Args:
        input: (N, C, H, W).
        weight: (C, C' / groups, h, w).
        bias: (C',), or None.
        stride, padding, output_padding, groups, dilation: as in torch.

    Returns:
        (N, C', H', W').
    """
    geometry = _Geometry(_pair(stride), _pair(padding), _pair(dilation), groups)
    padded = _pair(output_padding)
    if input.ndim != 4 or any(more >= step for more, step in zip(padded, geometry.stride)):
        return torch.conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation)
    x, weight, bias = _cast(input, weight, bias)
    size = [n + more for n, more in zip(geometry.smallest_input(x.shape, weight.shape), padded)]
    shape = torch.Size([len(x), weight.shape[1] * groups, *size])
    return _InputGradient.apply(*_in_one_layout(x, weight), bias, geometry, shape)


_REPLACEMENTS: dict[Any, Callable[..., Tensor]] = {
    torch.conv2d: conv2d,
    torch.conv_transpose2d: conv_transpose2d,
}


def _pair(value: Any) -> list[int]:
    """An int, or a sequence of one or two ints, as [height, width]."""
    return [value, value] if isinstance(value, int) else [*value] * (2 // len(value))


def _cast(*tensors: Tensor | None) -> list[Any]:
    """If autocast is on, cast all arguments to its precision, as autocast casts the arguments of torch's convolutions.

    autocast does nothing inside the backward pass of an autograd function, so the tensors that are saved for the
    backward pass must be cast before.
    """
    kind = tensors[0].device.type  # type: ignore[union-attr]
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return [*tensors]
    dtype = torch.get_autocast_dtype(kind)
    return [t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in tensors]


def _in_one_layout(*tensors: Tensor) -> list[Tensor]:
    """Convert all tensors to channels_last if one of them is in channels_last, else make all of them contiguous.

    With mixed layouts cuDNN would transpose tensors in every call.
    """
    layout = torch.channels_last if any(map(_is_channels_last, tensors)) else torch.contiguous_format
    return [tensor.contiguous(memory_format=layout) for tensor in tensors]


def _is_channels_last(t: Tensor) -> bool:
    """Tell if t (N, C, H, W) is in channels_last. Maps of one pixel do not count, as they are in both layouts."""
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
    """The gradient for a convolution's input, which is also a transposed convolution.

    y (N, C', H', W'), weight (C', C / groups, h, w), bias (C,) or None -> (N, C, H, W), the given `shape`. There is a
    bias only when a transposed convolution layer calls this function.
    """

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, weight: Tensor, bias: Tensor | None, geometry: _Geometry, shape: torch.Size
    ) -> Tensor:
        ctx.save_for_backward(y, weight)
        ctx.geometry = geometry
        ctx.set_materialize_grads(False)
        stride, padding, dilation, groups = geometry
        smallest = geometry.smallest_input(y.shape, weight.shape)
        output_padding = [n - least for n, least in zip(shape[2:], smallest)]
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
    """The gradient for a convolution's weight: y (N, C', H', W') and x (N, C, H, W) -> (C', C / groups, h, w).

    The result has the shape and memory layout of `weight`, whose values are not used.
    """

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
