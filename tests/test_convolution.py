"""Convolutions that can be differentiated twice by single kernels: the same numbers as torch's, in far fewer calls."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gan_dist.kernels import convolution
from gan_dist.kernels.convolution import conv2d, conv_transpose2d, twice_differentiable

CASES = [
    *({"stride": stride, "padding": padding, "groups": groups} for stride, padding, groups in
      itertools.product((1, 2, (2, 1)), (0, 1, (0, 2)), (1, 2))),
    {"dilation": 2, "padding": 2},
    {"stride": 3, "padding": 1, "dilation": (1, 2), "groups": 2},
    {"groups": 4},
]  # fmt: skip
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def _draw(*shape: int, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    tensor = torch.randn(*shape, dtype=torch.float64)
    return (tensor.contiguous(memory_format=layout) if len(shape) == 4 else tensor).requires_grad_()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_derivatives_of_convolution(case: dict[str, Any], layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    groups = case.get("groups", 1)
    x, weight, bias = _draw(2, 4, 6, 5, layout=layout), _draw(4, 4 // groups, 3, 2, layout=layout), _draw(4)
    torch.testing.assert_close(conv2d(x, weight, bias, **case), F.conv2d(x, weight, bias, **case))
    assert torch.autograd.gradcheck(lambda *a: conv2d(*a, **case), (x, weight, bias), fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *a: conv2d(*a, **case), (x, weight, bias), fast_mode=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "case", [*CASES, {"stride": 2, "output_padding": 1}, {"stride": 3, "output_padding": (2, 1)}], ids=str
)
def test_derivatives_of_transposed_convolution(case: dict[str, Any], layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    groups = case.get("groups", 1)
    x, weight, bias = _draw(2, 4, 4, 6, layout=layout), _draw(4, 4 // groups, 3, 2, layout=layout), _draw(4)
    torch.testing.assert_close(conv_transpose2d(x, weight, bias, **case), F.conv_transpose2d(x, weight, bias, **case))
    assert torch.autograd.gradcheck(lambda *a: conv_transpose2d(*a, **case), (x, weight, bias), fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *a: conv_transpose2d(*a, **case), (x, weight, bias), fast_mode=True)


def test_third_derivatives() -> None:
    torch.manual_seed(0)
    x, weight = _draw(1, 2, 4, 4), _draw(2, 1, 3, 3)

    def slope(x: Tensor, weight: Tensor) -> Tensor:
        y = conv2d(x, weight, padding=1, groups=2)
        return torch.autograd.grad(y.square().sum(), weight, create_graph=True)[0]

    assert torch.autograd.gradgradcheck(slope, (x, weight), fast_mode=True)


@pytest.mark.parametrize("wanted", itertools.product((True, False), repeat=3), ids=str)
def test_gradients_are_computed_only_where_they_are_wanted(wanted: tuple[bool, bool, bool]) -> None:
    """And the same as torch's where a penalty differentiates them again."""
    torch.manual_seed(0)
    tensors = [_draw(2, 4, 5, 5), _draw(6, 2, 3, 3), _draw(6)]
    for tensor, needed in zip(tensors, wanted):
        tensor.requires_grad_(needed)
    found = []
    for operator in (conv2d, F.conv2d):
        y = operator(*tensors, padding=1, groups=2)
        inputs = [tensor for tensor in tensors if tensor.requires_grad]
        if not inputs:
            assert not y.requires_grad
            continue
        first = torch.autograd.grad(y.sin().sum(), inputs, create_graph=True)
        again = torch.autograd.grad(sum(g.square().sum() for g in first), inputs, allow_unused=True)
        found.append([*first, *again])
    for ours, theirs in zip(*found or ([], []), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_empty_batch() -> None:
    x, weight = torch.empty(0, 4, 5, 5, requires_grad=True), torch.randn(6, 4, 3, 3, requires_grad=True)
    y = conv2d(x, weight)
    (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    (slope.square().sum() + y.sum()).backward()
    assert y.shape == (0, 6, 3, 3)
    assert weight.grad is not None
    assert not weight.grad.any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_call_has_its_arguments_in_one_layout(layout: torch.memory_format) -> None:
    """An expanded or transposed argument would cost cuDNN a copy in each call."""
    seen: list[set[bool]] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "convolution" in func.__name__:
                tensors = [a for a in args if isinstance(a, Tensor) and a.ndim == 4]
                assert all(t.is_contiguous(memory_format=layout) for t in tensors)
                seen.append({convolution._is_channels_last(t) for t in tensors})
            return func(*args, **(kwargs or {}))

    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 8, 3, groups=2)).to(
        memory_format=layout
    )
    x = torch.randn(2, 3, 6, 6).requires_grad_()
    with Watch():
        with twice_differentiable():
            y = network(x).mean((2, 3)).sum()  # its gradient is an expanded number
        (slope,) = torch.autograd.grad(y, x, create_graph=True)
        slope.square().sum().backward()
    assert seen
    assert all(len(layouts) == 1 for layouts in seen)
    assert all(p.grad.is_contiguous(memory_format=layout) for p in network.parameters() if p.ndim == 4)


def test_modules_and_functions_are_replaced_inside_the_context_alone() -> None:
    layers = [nn.Conv2d(2, 2, 3, padding=1), nn.ConvTranspose2d(2, 2, 3, padding=1)]
    x = torch.randn(1, 2, 5, 5)
    with twice_differentiable():
        names = [type(layer(x).grad_fn).__name__ for layer in layers]
        names.append(type(F.conv2d(x, layers[0].weight).grad_fn).__name__)
    assert names == ["_ConvolutionBackward", "_InputGradientBackward", "_ConvolutionBackward"]
    assert {type(layer(x).grad_fn).__name__ for layer in layers} == {"ConvolutionBackward0"}


def test_arguments_may_be_named_as_torch_names_them() -> None:
    x, weight = torch.randn(1, 2, 5, 5), torch.randn(2, 2, 3, 3)
    for function in (F.conv2d, F.conv_transpose2d):
        expected = function(input=x, weight=weight, bias=None, stride=1, padding=1, dilation=1, groups=1)
        with twice_differentiable():
            found = function(input=x, weight=weight, bias=None, stride=1, padding=1, dilation=1, groups=1)
        torch.testing.assert_close(found, expected)


def test_what_is_not_computed_here_is_left_to_torch() -> None:
    layer = nn.Conv2d(2, 2, 3, padding="same")
    with twice_differentiable():
        assert type(layer(torch.randn(1, 2, 5, 5)).grad_fn).__name__ == "ConvolutionBackward0"
        assert layer(torch.randn(2, 5, 5)).shape == (2, 5, 5)
        padded = nn.ConvTranspose2d(2, 2, 3, dilation=2, output_padding=1)(torch.randn(1, 2, 5, 5))
    assert type(padded.grad_fn).__name__ == "ConvolutionBackward0", "the output is padded by a whole stride"


def test_under_autocast_all_derivatives_are_in_half_precision() -> None:
    seen: list[torch.dtype] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if "convolution" in func.__name__:
                seen.extend(
                    t.dtype for t in (*args, *(out if isinstance(out, tuple) else [out])) if isinstance(t, Tensor)
                )
            return out

    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.LeakyReLU(0.2), nn.Conv2d(4, 1, 3, groups=1))
    x = torch.randn(2, 2, 6, 6).requires_grad_()
    with Watch():
        with twice_differentiable(), torch.autocast("cpu", torch.bfloat16):
            y = network(x).sum()
        (slope,) = torch.autograd.grad(y, x, create_graph=True)
        slope.square().sum().backward()
    assert set(seen) == {torch.bfloat16}
    assert slope.dtype == torch.float32
    assert all(layer.weight.grad.dtype == torch.float32 for layer in network[::2])
