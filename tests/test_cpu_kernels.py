"""Tests of the CPU kernels: functions, names and gradients do not change, and freed memory is kept for reuse."""

from __future__ import annotations

import copy
import platform
import resource
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from gan_dist.kernels import cpu
from gan_dist.kernels.layout import adapt
from gan_dist.kernels.memory import keep_freed_memory
from gan_dist.models import architecture


def _results(network: nn.Module, *inputs: Tensor) -> list[Tensor]:
    """Outputs, and gradients of a sum that has the outputs' own slopes in it: all of them differentiated twice."""
    x = inputs[0].clone().requires_grad_()
    y = network(x, *inputs[1:])
    (slope,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
    gradients = torch.autograd.grad(slope.square().sum() + y.sum(), list(network.parameters()), allow_unused=True)
    return [y, slope, *(g for g in gradients if g is not None)]


def _assert_as_exact(quick: nn.Module, plain: nn.Module, *inputs: Tensor) -> None:
    """Beside fp64, the quick network errs by no more than some times what the plain one does."""
    wanted = _results(copy.deepcopy(plain).double(), inputs[0].double(), *inputs[1:])
    for found, usual, exact in zip(_results(quick, *inputs), _results(plain, *inputs), wanted, strict=True):
        rounding = 1e-5 * exact.abs().max()
        assert (found - exact).abs().max() <= 8 * (usual - exact).abs().max() + rounding


@pytest.mark.parametrize("bias", [True, False])
def test_linear_layer_is_the_plain_one_twice_differentiable(bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(300, 256, bias=bias), nn.LeakyReLU(0.2, inplace=True), nn.Linear(256, 300))
    quick = cpu.convert(copy.deepcopy(plain))
    assert {type(module) for module in quick} == {cpu.Linear, nn.LeakyReLU}
    _assert_as_exact(quick, plain, torch.randn(32, 300))


WIDTHS: dict[str, tuple[Sequence[int], Sequence[int]]] = {
    "mlp": ((), ()),
    "dcgan": ((64, 32), (32, 64)),
    "sngan": ((8, 8, 4), (4, 8, 8, 8)),
    "pggan": ((8, 8, 4), (4, 8, 8)),
}


@pytest.mark.parametrize("name", WIDTHS)
@pytest.mark.parametrize("part", ["Generator", "Discriminator"])
def test_a_network_computes_what_it_computed(name: str, part: str) -> None:
    torch.manual_seed(0)
    module, shape, (g_widths, d_widths) = architecture(name), (1, 28, 28), WIDTHS[name]
    made = {"Generator": (shape, 3, 16, g_widths), "Discriminator": (shape, 3, d_widths)}[part]
    plain = getattr(module, part)(*made)
    quick = adapt(copy.deepcopy(plain), "fp32")
    assert list(quick.state_dict()) == list(plain.state_dict())
    x = torch.randn(8, 16) if part == "Generator" else torch.randn(8, *shape)
    _assert_as_exact(quick, plain, x, torch.arange(8) % 3)


def test_first_layer_of_a_larger_image_is_a_transposed_convolution() -> None:
    torch.manual_seed(0)
    plain = nn.ConvTranspose2d(5, 4, 3, stride=2, bias=False)
    quick = adapt(copy.deepcopy(plain), "fp32")
    assert type(quick) is cpu.FirstLayer
    for size in (1, 2):
        x = torch.randn(2, 5, size, size)
        torch.testing.assert_close(quick(x), plain(x), rtol=1e-5, atol=1e-5)


def test_other_precisions_stay_as_they_are() -> None:
    network = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Linear(300, 300)).double()
    adapt(network, "fp64")
    assert type(network[1]) is nn.Linear
    assert network[0].weight.is_contiguous()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_large_blocks_are_kept_when_freed() -> None:
    keep_freed_memory()
    pages = 2**26 // 4096  # of the tensor below, each of which costs a page fault when it is mapped

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**24)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    # A block that torch aligns leaves a small remainder behind it. glibc keeps the first seven of a size apart, and the
    # block before each of them can't grow: the same request fits into what was freed only after these.
    for _ in range(8):
        faults()
    assert faults() < pages / 10
