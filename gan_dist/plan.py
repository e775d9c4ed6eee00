"""What a run will cost on many GPUs: counted operations and bytes over a machine's rates, before anything is trained.

An iteration is run on the meta device, shapes without numbers, and each of its operations is counted. An operation
takes as long as its arithmetic or its memory traffic, whichever is longer (the roofline model of Williams et al. 2009),
and at least as long as it takes to start one.
"""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

from gan_dist import fast
from gan_dist.checks import check_game
from gan_dist.data import DataInfo
from gan_dist.distributed import Distributed
from gan_dist.errors import ConfigError
from gan_dist.parts import make_state, make_step
from gan_dist.schema import Config
from gan_dist.stats import RunningMeans

BUCKET = 25 * 2**20  # bytes of gradients that DistributedDataParallel sends at once


@dataclass(frozen=True)
class Rates:
    """What a processor does in a second.

    Attributes:
        matmul, convolution, half: floating-point operations per second of products and of convolutions in fp32 (on a
            GPU in TF32, as torch has them by default), and of both in bf16 or fp16.
        traffic: bytes per second from and to memory.
        memory: bytes of it.
        start: seconds to start an operation.
        bandwidth: bytes per second between processes, the slowest link's.
        latency: seconds until a message arrives.
    """

    matmul: float
    convolution: float
    half: float
    traffic: float
    memory: float
    start: float
    bandwidth: float
    latency: float


# Makers' figures for dense operations, none of them measured here; links of 400 and 200 Gbit/s a GPU between nodes.
GPUS = {
    "h200": Rates(67e12, 495e12, 989e12, 4.8e12, 141e9, 5e-6, 50e9, 10e-6),
    "h100": Rates(67e12, 495e12, 989e12, 3.35e12, 80e9, 5e-6, 50e9, 10e-6),
    "a100": Rates(19.5e12, 156e12, 312e12, 2.0e12, 80e9, 5e-6, 25e9, 10e-6),
    "v100": Rates(15.7e12, 15.7e12, 125e12, 0.9e12, 32e9, 5e-6, 12.5e9, 10e-6),
}


def measured_rates() -> Rates:
    """This machine's, measured in some seconds; between processes, supposed: 1 GB/s and 0.1 ms."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")

    def seconds(work: Callable[[], Tensor]) -> float:
        times = []
        for _ in range(7):
            start = time.perf_counter()
            work().flatten()[0].item()  # waits for the device
            times.append(time.perf_counter() - start)
        return min(times)

    n, c, side = (8192, 256, 64) if on_gpu else (1024, 64, 16)  # long beside the start of a kernel, and the answer
    a, small = torch.randn(n, n, device=device), torch.ones(1, device=device)
    # Not zeros, whose pages may not be there yet.
    large, copy = (torch.ones(2**28 if on_gpu else 2**24, device=device) for _ in range(2))
    x, half = torch.randn(64, c, side, side, device=device), a.bfloat16()
    product = fast.convert(nn.Linear(n, n, bias=False, device=device).requires_grad_(False))
    conv = fast.convert(nn.Conv2d(c, c, 3, padding=1, bias=False, device=device).requires_grad_(False))
    memory = torch.cuda.get_device_properties(device).total_memory if on_gpu else math.inf
    return Rates(
        2 * n**3 / seconds(lambda: product(a)),
        2 * x.numel() * c * 9 / seconds(lambda: conv(x)),
        2 * n**3 / seconds(lambda: half @ half),
        2 * large.nbytes / seconds(lambda: copy.copy_(large)),
        memory,
        seconds(lambda: sum((small + 1 for _ in range(100)), small)) / 200,
        1e9,
        100e-6,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Counting


@dataclass(frozen=True)
class Operation:
    """Floating-point operations, bytes read and written, and what it is part of; `half`: in bf16 or fp16."""

    flops: int
    nbytes: int
    convolution: bool
    half: bool
    backward_of: str  # "D" or "G": of the loss that the gradients are sent for; "" else


class Counter(TorchDispatchMode):
    """Counts what is run inside, and how many bytes are alive at once at most."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.norms = 0  # passes through a batch normalization, forward and backward
        self.backward_of = ""
        self.live = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        for tensor in outputs:
            self._hold(tensor)
        name = func._overloadpacket.__name__
        self.norms += name.startswith(("native_batch_norm", "_native_batch_norm", "batch_norm_backward"))
        count = flop_registry.get(func._overloadpacket)
        flops = count(*args, **kwargs, out_val=out) if count else 0
        if not func.is_view and any(tensor.is_meta for tensor in outputs):  # not what the host draws
            nbytes = sum(tensor.nbytes for tensor in (*inputs, *outputs))
            half = any(tensor.itemsize == 2 for tensor in outputs if tensor.is_floating_point())
            self.operations.append(Operation(flops, nbytes, "convolution" in name, half, self.backward_of))
        return out

    def _hold(self, tensor: Tensor) -> None:
        """Count a storage until it is gone."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)

        def gone() -> None:
            self._seen.discard(key)
            self.live -= size

        weakref.finalize(storage, gone)


class MixedPrecision(TorchFunctionMode):
    """Products and convolutions in half precision, as autocast does it, which does not know the meta device."""

    PRODUCTS = (F.linear, F.conv2d, F.conv_transpose2d, torch.matmul, Tensor.matmul, Tensor.__matmul__)
    paused = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.PRODUCTS and not self.paused:
            args = tree_map(lambda x: x.bfloat16() if isinstance(x, Tensor) and x.is_floating_point() else x, args)
        return func(*args, **(kwargs or {}))

    @contextmanager
    def twice_differentiable(self, model: nn.Module, needed: bool = True) -> Iterator[None]:
        """As `Distributed.twice_differentiable`."""
        self.paused = needed
        try:
            yield
        finally:
            self.paused = False


@dataclass(frozen=True)
class Iteration:
    """What one process does and holds in an iteration.

    Attributes:
        steps: of "D" and "G" in an iteration.
        gradients: bytes of each one's gradient, as it is sent.
        persistent: bytes of weights, their average, moments and data set; `peak`: of all else at once.
    """

    operations: list[Operation]
    steps: dict[str, int]
    gradients: dict[str, int]
    norms: int
    persistent: int
    peak: int


def count_iteration(config: Config, info: DataInfo, share: int) -> Iteration:
    """Count an iteration of a process with this share of the global batch; a network that grows in its last stage."""
    settings = replace(config.train, batch_size=share, compile=False)
    growth = replace(config.growth, stable_kimg=0.0, batch_sizes=[])
    optim = replace(config.optim, **{side: _countable(getattr(config.optim, side)) for side in ("G", "D")})
    config = replace(config, train=settings, growth=growth, optim=optim)
    dist = Distributed("fp32", cpu=True)
    dist.device = torch.device("meta")
    mixed = MixedPrecision() if config.train.precision in ("bf16", "fp16") else None
    if mixed:
        dist.twice_differentiable = mixed.twice_differentiable  # type: ignore[method-assign]
    state = make_state(config, info, dist)
    class_probs = torch.full((info.num_classes,), 1 / info.num_classes) if config.model.conditional else None
    step = make_step(config, state, dist, RunningMeans(dist), class_probs)
    step.enter_stage()
    counter, backward = Counter(), dist.backward
    of = {id(step.opt_D): "D", id(step.opt_G): "G"}

    def marked(loss: Tensor, optimizer: Any) -> None:
        counter.backward_of = of[id(optimizer)]
        backward(loss, optimizer)
        counter.backward_of = ""

    dist.backward = marked  # type: ignore[method-assign]
    for optimizer in (step.opt_D, step.opt_G):
        optimizer.step = lambda: None  # counted by hand: no fused kernel runs on shapes alone
    images = torch.empty(share, *info.image_shape, dtype=torch.uint8, device="meta")
    labels = torch.empty(share, dtype=torch.int64, device="meta")
    with mixed or nullcontext(), counter:
        step(iter([(images, labels)] * settings.n_critic))

    weights = {name: _nbytes(getattr(state, name)) for name in ("G", "D")}
    for name, n in (("G", 1), ("D", settings.n_critic)):
        # Adam reads weight, gradient and two moments and writes all but the gradient; G's average takes three more.
        passes = 7 * n + 3 * (name == "G")
        counter.operations.append(Operation(0, passes * weights[name], False, False, ""))
    data = math.prod(info.image_shape) * info.num_images
    held = data if data <= config.data.memory_gib * 2**30 else 0
    return Iteration(
        counter.operations,
        {"D": settings.n_critic, "G": 1},
        {name: size // (2 if settings.compress_gradients else 1) for name, size in weights.items()},
        counter.norms if settings.sync_batch_norm else 0,
        4 * weights["G"] + 3 * weights["D"] + held,
        counter.peak,
    )


def _countable(optimizer: Any) -> Any:
    """With no fused kernel, which does not run on shapes alone."""
    arguments = {name: value for name, value in optimizer.args.items() if name != "fused"}
    return replace(optimizer, args={**arguments, "foreach": True})


def _nbytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


# ---------------------------------------------------------------------------------------------------------------------
# Expecting


@dataclass(frozen=True)
class Expected:
    """A row of the plan: one iteration on `gpus` processes.

    Attributes:
        compute, wait: seconds of computing, and of communication that is not hidden behind the backward passes.
        memory: bytes of a process.
    """

    gpus: int
    share: int
    compute: float
    wait: float
    memory: float

    def seconds_per_kimg(self, images: int) -> float:
        """With so many real images an iteration."""
        return 1000 * (self.compute + self.wait) / images


def expect(iteration: Iteration, gpus: int, share: int, rates: Rates) -> Expected:
    """From counts to seconds."""

    def seconds(operation: Operation) -> float:
        arithmetic = rates.half if operation.half else rates.convolution if operation.convolution else rates.matmul
        return max(rates.start, operation.flops / arithmetic, operation.nbytes / rates.traffic)

    compute = sum(map(seconds, iteration.operations))
    wait = 0.0
    hops = 2 * math.log2(gpus) if gpus > 1 else 0.0  # of a tree, there and back
    for name, steps in iteration.steps.items():
        nbytes = iteration.gradients[name]
        buckets = max(1, math.ceil(nbytes / BUCKET))
        ring = 2 * (gpus - 1) / gpus
        sending = ring * nbytes / rates.bandwidth + buckets * hops * rates.latency
        backward = sum(seconds(o) for o in iteration.operations if o.backward_of == name) / steps
        # The last bucket is full only when the backward pass ends.
        last = ring * min(nbytes, BUCKET) / rates.bandwidth + hops * rates.latency
        hidden = min(backward, sending - last) if buckets > 1 else 0.0
        wait += steps * (sending - hidden)
    wait += iteration.norms * (hops * rates.latency)
    return Expected(gpus, share, compute, wait if gpus > 1 else 0.0, iteration.persistent + iteration.peak)


def plan(config: Config, info: DataInfo, gpus: int, rates: Rates) -> Expected:
    """What an iteration costs on so many GPUs.

    Raises:
        ConfigError: the batch can't be spread over them.
    """
    check_game(config, info, gpus)
    share = config.train.batch_size // gpus
    return expect(count_iteration(config, info, share), gpus, share, rates)


def pays_up_to(config: Config, info: DataInfo, rates: Rates) -> int:
    """How many GPUs to take at most: twice as many would make a run shorter by less than a fifth, or can't be."""
    row = plan(config, info, 1, rates)
    while True:
        try:
            twice = plan(config, info, 2 * row.gpus, rates)
        except ConfigError:
            return row.gpus
        if twice.compute + twice.wait > 0.8 * (row.compute + row.wait):
            return row.gpus
        row = twice
