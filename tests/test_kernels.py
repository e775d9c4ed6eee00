"""Operators of `gan_dist.kernels` beside convolutions: torch's results, layouts kept, and switches put back."""

from __future__ import annotations

import copy
from contextlib import suppress
from typing import Any

import pytest
import torch
from conftest import load_recipe
from torch import Tensor, nn
from torch.nn import functional as F

from gan_dist.data.datasets import describe
from gan_dist.data.in_memory import ImageTensor
from gan_dist.engine.stats import RunningMeans
from gan_dist.game.regularizers import iterate_spectral_norms
from gan_dist.kernels import layout
from gan_dist.kernels.gradients import with_regard_to
from gan_dist.kernels.lookup import lookup
from gan_dist.kernels.resampling import double, halve
from gan_dist.kernels.switches import full_precision, ieee_fp32, numerics
from gan_dist.metrics import Reference
from gan_dist.metrics.classifier import _Quarters
from gan_dist.metrics.features import FeatureEvaluator
from gan_dist.models._layers import spectral_norm
from gan_dist.parallel.distributed import Distributed
from gan_dist.wiring.data import source_of
from gan_dist.wiring.iteration import make_step
from gan_dist.wiring.networks import make_state

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def _filter(channels: int) -> Tensor:
    row = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64)
    return (row[:, None] * row / 64).repeat(channels, 1, 1, 1)


@pytest.mark.parametrize("by_convolution", [True, False])
@pytest.mark.parametrize("memory_format", LAYOUTS)
@pytest.mark.parametrize("size", [(2, 4), (6, 8), (14, 14)])
def test_resampling_is_the_filter(
    size: tuple[int, int], memory_format: torch.memory_format, by_convolution: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both forms of it; the one of sums is a GPU's."""
    monkeypatch.setattr("gan_dist.kernels.resampling._by_convolution", lambda _: by_convolution)
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size, dtype=torch.float64).contiguous(memory_format=memory_format).requires_grad_()
    expected = F.conv2d(x, _filter(3), stride=2, padding=1, groups=3)
    torch.testing.assert_close(halve(x), expected)
    expected = F.conv_transpose2d(x, 4 * _filter(3), stride=2, padding=1, groups=3)
    torch.testing.assert_close(double(x), expected)
    for resample in (halve, double):
        assert resample(x).is_contiguous(memory_format=memory_format)
        assert torch.autograd.gradcheck(resample, (x,), fast_mode=True)
        assert torch.autograd.gradgradcheck(resample, (x,), fast_mode=True)


def test_resampling_by_sums_compiles_as_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gan_dist.kernels.resampling._by_convolution", lambda _: False)
    x = torch.randn(2, 3, 8, 8)
    compiled = torch.compile(lambda x: double(halve(x)), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), double(halve(x)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_resampling_in_half_precision(dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 8, 8)
    for resample in (halve, double):
        found = resample(x.to(dtype))
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), resample(x), rtol=2e-2, atol=2e-2)


def test_lookup_is_an_embedding() -> None:
    torch.manual_seed(0)
    rows = torch.tensor([2, 0, 2, 1, 2])
    table = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(lookup(table, rows), F.embedding(rows, table))
    assert torch.autograd.gradcheck(lambda table: lookup(table, rows), (table,))
    assert torch.autograd.gradgradcheck(lambda table: lookup(table, rows), (table,))
    with pytest.raises(IndexError):
        lookup(table, torch.tensor([-1]))


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 5), (4, 7)])
def test_quarters_are_adaptive_pooling(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(_Quarters()(x), F.adaptive_avg_pool2d(x, 2))
    assert torch.autograd.gradcheck(_Quarters(), (x,))


def test_joined_groups_compute_the_same() -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(24, 48, 3, padding=1, groups=4).double()
    joined = nn.Sequential(copy.deepcopy(plain))
    layout.join_groups(joined)
    assert type(joined[0]) is layout.JoinedGroups
    x = torch.randn(2, 24, 5, 5, dtype=torch.float64, requires_grad=True)
    found = []
    for network in (plain, joined):
        y = network(x)
        (slope,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
        found.append([y, slope, *torch.autograd.grad(slope.square().sum() + y.sum(), [*network.parameters()])])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kept", [{"groups": 3}, {"groups": 24}, {"groups": 4, "padding_mode": "reflect"}], ids=str)
def test_groups_that_cannot_be_joined_stay(kept: dict[str, Any]) -> None:
    """An odd number of them, depthwise convolutions, and those that pad by other than zeros."""
    network = nn.Sequential(nn.Conv2d(24, 24, 3, padding=1, **kept))
    layout.join_groups(network)
    assert type(network[0]) is nn.Conv2d


def test_layouts_are_chosen_by_what_was_measured() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    plain, grouped = nn.Sequential(nn.Conv2d(8, 8, 3)), nn.Sequential(nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 8, 3))
    assert layout.use_channels_last(plain, cpu, "fp32")
    assert layout.use_channels_last(grouped, cpu, "bf16")
    assert not layout.use_channels_last(grouped, cpu, "fp64")
    assert layout.use_channels_last(grouped, gpu, "bf16")
    assert not layout.use_channels_last(plain, gpu, "tf32")
    assert not layout.use_channels_last(grouped, gpu, "fp32")
    assert not layout.use_channels_last(nn.Linear(3, 3), cpu, "fp32")


def test_gradients_of_parameters_are_left_out_where_nobody_asks_for_them() -> None:
    """But not those of a weight that is computed from what is asked for."""
    from gan_dist.kernels.convolution import conv2d

    calls: list[str] = []

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            calls.append(func.__name__)
            return func(*args, **(kwargs or {}))

    x, weight = torch.randn(2, 3, 5, 5, requires_grad=True), torch.randn(4, 3, 3, 3, requires_grad=True)
    for scaled in (weight, 2 * weight):
        y = conv2d(x, scaled)
        calls.clear()
        with Count(), with_regard_to([x]):
            torch.autograd.grad(y.sum(), x, create_graph=True)
        assert not any("convolution_backward" in name for name in calls)
    with with_regard_to([x]):
        (slope,) = torch.autograd.grad(conv2d(x, weight * x.mean()).sum(), x)
    (expected,) = torch.autograd.grad(F.conv2d(x, weight * x.mean()).sum(), x)
    torch.testing.assert_close(slope, expected)


def _switches() -> tuple[bool, bool, bool, bool]:
    cudnn = torch.backends.cudnn
    return torch.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark


def test_switches_are_set_for_a_run_and_put_back() -> None:
    before = _switches()
    with suppress(KeyError), numerics("tf32", exact=True):
        assert _switches() == (True, True, True, False)
        with ieee_fp32():
            assert _switches() == (False, False, True, False)
        with torch.backends.cudnn.flags(enabled=True, deterministic=True):
            assert torch.backends.cudnn.deterministic
        assert _switches() == (True, True, True, False)
        raise KeyError  # a run that fails
    assert _switches() == before
    for precision in ("fp64", "fp32", "bf16", "fp16"):
        with numerics(precision, exact=False):
            assert _switches() == (False, False, False, False)
    assert torch.get_float32_matmul_precision() == "highest", "the newer interface can still be read"


def test_full_precision_inside_autocast() -> None:
    a = torch.randn(4, 4)
    with numerics("tf32", exact=True), torch.autocast("cpu", torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
        with full_precision(a.device):
            assert (a @ a).dtype == torch.float32
            assert not torch.backends.cuda.matmul.allow_tf32


class _WatchTf32(torch.utils._python_dispatch.TorchDispatchMode):
    """For each product or convolution, whether it may be computed in TF32, were it on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, set[bool]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func._overloadpacket.__name__
        if name in ("mm", "addmm", "bmm", "mv", "addmv", "convolution", "convolution_backward", "_linear_pointwise"):
            self.seen.setdefault(name, set()).add(torch.backends.cuda.matmul.allow_tf32)
        return func(*args, **(kwargs or {}))


class _Extractor:
    """A convolution, as any network for metrics has it."""

    name, num_features, num_logits, weights, resizing = "convolution", 4, 4, "", "none"

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = F.conv2d(images.float(), torch.ones(4, 1, 3, 3)).mean((2, 3))
        return features, features


def test_metrics_are_ieee_in_a_tf32_run() -> None:
    config = load_recipe("sngan_fashion_mnist", "train.batch_size=4")
    info, dist = describe(source_of(config.data)), Distributed("tf32", cpu=True)
    state = make_state(config, info, dist)
    step = make_step(config, state, dist, RunningMeans(dist), None)
    images, labels = torch.zeros(8, *info.image_shape, dtype=torch.uint8), torch.zeros(8, dtype=torch.int64)
    with numerics("tf32", exact=True):
        with _WatchTf32() as metrics:
            sizes = {"num_images": 4, "batch_size": 4, "seed": 0}
            reference = Reference(ImageTensor(images, labels), info, "key", None)
            FeatureEvaluator(_Extractor(), reference, dist, extra={}, **sizes)(state.G_ema)
        with _WatchTf32() as training:
            step(iter([(images[:4], labels[:4])]))
    assert metrics.seen["convolution"] == {False}
    assert set.union(*metrics.seen.values()) == {False}
    assert training.seen["convolution"] == {True}


def test_spectral_norms_are_ieee_in_a_tf32_run() -> None:
    layer = spectral_norm(nn.Conv2d(3, 4, 3))
    with numerics("tf32", exact=True), _WatchTf32() as norms:
        iterate_spectral_norms(layer)
        _ = layer.weight
    assert norms.seen == {"mv": {False}}
