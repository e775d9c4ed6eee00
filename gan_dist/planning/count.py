"""Count the operations, memory traffic and memory of one training iteration in one process, without training.

The iteration runs on torch's meta device, where tensors have shapes but no values, and each operation is counted.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

from gan_dist.data import DataInfo
from gan_dist.engine.stats import RunningMeans
from gan_dist.kernels import convolution
from gan_dist.parallel.distributed import Distributed
from gan_dist.planning.memory import data_bytes, moments
from gan_dist.settings.schema import Config
from gan_dist.wiring.iteration import make_step
from gan_dist.wiring.networks import make_state


@dataclass(frozen=True)
class Operation:
    """One counted operation.

    Attributes:
        flops: number of floating-point operations.
        nbytes: number of bytes that it reads and writes.
        convolution: it is a convolution, or the derivative of one.
        half: it computes in bf16 or fp16.
        backward_of: "D" or "G" if it belongs to the backward pass of that network's loss, else "". Gradients are sent
            between processes during these passes.
    """

    flops: int
    nbytes: int
    convolution: bool
    half: bool
    backward_of: str


class Counter(TorchDispatchMode):
    """A context that counts the operations in it and the memory of the tensors that they create.

    Attributes:
        operations: the operations so far.
        norms: number of passes through a batch normalization, forward and backward, so far.
        backward_of: see `Operation`; the caller sets it around a backward pass.
        live: bytes of the created tensors that exist now.
        peak: largest value of `live` so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.norms = 0
        self.backward_of = ""
        self.live = self.peak = 0
        self._seen: set[int] = set()
        self._paused = False

    def uncounted(self, call: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return a function that does what `call` does, without being counted."""

        def called(*args: Any) -> Tensor:
            self._paused = True
            try:
                return call(*args)
            finally:
                self._paused = False

        return called

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._paused:
            return func(*args, **kwargs)
        out = func(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        for tensor in outputs:
            self._hold(tensor)
        name = func._overloadpacket.__name__
        self.norms += name.startswith(("native_batch_norm", "_native_batch_norm", "batch_norm_backward"))
        flops = _flops(func, args, kwargs, out)
        if not func.is_view and any(tensor.is_meta for tensor in outputs):
            nbytes = sum(tensor.nbytes for tensor in (*inputs, *outputs))
            half = any(tensor.itemsize == 2 for tensor in outputs if tensor.is_floating_point())
            self.operations.append(Operation(flops, nbytes, "convolution" in name, half, self.backward_of))
        return out

    def _hold(self, tensor: Tensor) -> None:
        """Add the tensor's memory to `live` until its storage is freed. Tensors that share a storage count once."""
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


def _flops(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    """The floating-point operations of a call, from torch's registry.

    For gradients of grouped convolutions the registry ignores the groups, so this function counts them itself.
    """
    if func._overloadpacket is torch.ops.aten.convolution_backward:
        y, x, weight, _, _, _, _, transposed, _, _, wanted = args
        places = (x if transposed else y).shape
        return 2 * sum(wanted[:2]) * weight.numel() * places[0] * math.prod(places[2:])
    count = flop_registry.get(func._overloadpacket)
    return count(*args, **kwargs, out_val=out) if count else 0


class MixedPrecision(TorchFunctionMode):
    """A context in which matrix products and convolutions run in half precision.

    It replaces autocast, which does not support the meta device. It uses bf16 for fp16 as well, as both have 2 bytes.

    Attributes:
        paused: if True, the context changes nothing.
    """

    PRODUCTS = (F.linear, F.conv2d, F.conv_transpose2d, torch.matmul, Tensor.matmul, Tensor.__matmul__)
    paused = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.PRODUCTS and not self.paused:
            args = tree_map(lambda x: x.bfloat16() if isinstance(x, Tensor) and x.is_floating_point() else x, args)
        return func(*args, **(kwargs or {}))


class CountedProcess(Distributed):
    """The process of a run whose iteration is counted: alone, on the meta device, and without fused kernels.

    It neither uses Accelerate nor meets other processes, so a process of a run can count too.

    Args:
        counter: is told in each backward pass which network's gradients are computed.
        mixed: replaces autocast, which does not support the meta device; None in full precision.
        counted_precision: precision of the run.

    Attributes:
        networks: "G" or "D" for each optimizer; to be set before an iteration is counted.
    """

    def __init__(self, counter: Counter, mixed: MixedPrecision | None, counted_precision: str) -> None:
        self.precision, self.device = "fp32", torch.device("meta")
        self.rank, self.world_size, self.local_world_size, self.first_local_rank = 0, 1, 1, 0
        self.several, self.is_main, self.is_local_main = False, True, True
        self.counter, self.mixed, self.counted_precision = counter, mixed, counted_precision
        self.networks: dict[Optimizer, str] = {}

    def prepare_model(self, module: nn.Module) -> nn.Module:
        return module

    def prepare_optimizer(self, optimizer: Optimizer, scaler: Any) -> Any:
        """An optimizer whose steps do nothing, as fused kernels do not run on the meta device."""
        return SimpleNamespace(optimizer=optimizer, scaler=None, step=lambda: None)

    def backward(self, loss: Tensor, optimizer: Any) -> None:
        self.counter.backward_of = self.networks[optimizer.optimizer]
        super().backward(loss, optimizer)
        self.counter.backward_of = ""

    @contextmanager
    def twice_differentiable(self, model: nn.Module, needed: bool = True) -> Iterator[None]:
        with convolution.twice_differentiable() if needed else nullcontext():
            if not self.mixed:
                yield
                return
            self.mixed.paused = needed and self.counted_precision == "fp16"
            try:
                # `mixed` is already active. It is entered again inside, so that it runs first and casts the arguments
                # before the convolution gets them.
                with self.mixed:
                    yield
            finally:
                self.mixed.paused = False


@dataclass(frozen=True)
class Iteration:
    """The work and the memory of one process in one iteration.

    Attributes:
        operations: all operations of the iteration.
        steps: number of steps of "D" and of "G" in the iteration.
        gradients: bytes of the gradient of "D" and of "G", as it is sent between processes.
        norms: number of passes through a synchronised batch normalization, each of which needs an all-reduce.
        persistent: bytes that are always in use: weights, the optimizers' moments, G_ema and the data set.
        peak: largest number of bytes in use at once for everything else, such as activations and gradients.
        tf32: operations that are not in half precision run in TF32.
    """

    operations: list[Operation]
    steps: dict[str, int]
    gradients: dict[str, int]
    norms: int
    persistent: int
    peak: int
    tf32: bool = False


def count_iteration(config: Config, info: DataInfo, share: int) -> Iteration:
    """Count one iteration of one process. With progressive growing this is an iteration of the last stage.

    Args:
        config: the settings of the run.
        info: the data set; see `gan_dist.data.datasets.describe`.
        share: per-process batch.
    """
    settings = replace(config.train, batch_size=share, compile=False)
    growth = replace(config.growth, stable_kimg=0.0, batch_sizes=[])
    optim = replace(config.optim, **{side: _countable(getattr(config.optim, side)) for side in ("G", "D")})
    config = replace(config, train=settings, growth=growth, optim=optim)
    mixed = MixedPrecision() if config.train.precision in ("bf16", "fp16") else None
    counter = Counter()
    dist = CountedProcess(counter, mixed, config.train.precision)
    with torch.device("meta"):  # initial weights on the CPU would take most of the time
        state = make_state(config, info, dist)
    dist.networks = {state.opt_G: "G", state.opt_D: "D"}
    class_probs = torch.full((info.num_classes,), 1 / info.num_classes) if config.model.conditional else None
    step = make_step(config, state, dist, RunningMeans(dist), class_probs)
    for kind, draw in step.draws.draw.items():  # a block is drawn for many iterations
        step.draws.draw[kind] = counter.uncounted(draw)
    images = torch.empty(share, *info.image_shape, dtype=torch.uint8, device="meta")
    labels = torch.empty(share, dtype=torch.int64, device="meta")
    with mixed or nullcontext(), counter:
        step(iter([(images, labels)] * settings.n_critic))

    weights = {name: _nbytes(getattr(state, name)) for name in ("G", "D")}
    kept = {name: moments(getattr(config.optim, name)) for name in ("G", "D")}
    for name, n in (("G", 1), ("D", settings.n_critic)):
        # An optimizer reads weights, gradients and moments, and writes all of them except the gradients: with Adam's
        # two moments, these are 7 passes over memory of the size of the weights. Updating G_ema reads G and G_ema and
        # writes G_ema: 3 more passes.
        passes = (3 + 2 * kept[name]) * n + 3 * (name == "G")
        counter.operations.append(Operation(0, round(passes * weights[name]), False, False, ""))
    return Iteration(
        counter.operations,
        {"D": settings.n_critic, "G": 1},
        {name: size // (2 if settings.compress_gradients else 1) for name, size in weights.items()},
        counter.norms if settings.sync_batch_norm else 0,
        round((2 + kept["G"]) * weights["G"] + (1 + kept["D"]) * weights["D"]) + data_bytes(config, info),
        counter.peak,
        config.train.precision == "tf32",
    )


def _countable(optimizer: Any) -> Any:
    """The settings of an optimizer without fused kernels, which do not run on the meta device."""
    arguments = {name: value for name, value in optimizer.args.items() if name != "fused"}
    return replace(optimizer, args={**arguments, "foreach": True})


def _nbytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())
