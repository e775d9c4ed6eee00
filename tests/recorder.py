"""What a CUDA graph does, on a CPU: record the calls of torch's operators in a function, then make them again.

A replay runs no Python, so each number that the function took from the host stays what it was, and each tensor that it
used or made stays at its address. A function that reads a value on the host cannot be recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gan_dist.wiring.build import WiredRun

aten = torch.ops.aten
# Operators whose result, or whose result's shape, the host must know, and those that bring host values to the device.
READS = {
    *(aten._local_scalar_dense.default, aten.item.default, aten.is_nonzero.default, aten.equal.default),
    *(aten.nonzero.default, aten.masked_select.default, aten.lift_fresh.default),
}


class Recorder(TorchDispatchMode):
    """A context that records the calls in it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in READS:
            raise AssertionError(f"{func} reads a value on the host")
        result = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, result))
        return result

    def replay(self) -> None:
        """Make the calls again, without autograd. Each result goes to where it was when it was recorded."""
        with torch._C._AutoDispatchBelowAutograd():
            self._replay()

    def _replay(self) -> None:
        for func, args, kwargs, recorded in self.calls:
            result = func(*args, **kwargs)
            for old, new in zip(tree_leaves(recorded), tree_leaves(result)):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Recording:
    """Records functions on a CPU; see `gan_dist.engine.graphs.Capture`.

    Attributes:
        replays: how often any of the functions was replayed.
    """

    def __init__(self) -> None:
        self.replays = 0

    def __call__(self, function: Callable[..., Any], inputs: Any) -> tuple[Any, Callable[[], None]]:
        with Recorder() as recorder:
            outputs = function(*inputs)
        computed = [True]  # unlike a capture, the recording has computed everything already

        def replay() -> None:
            if computed:
                computed.clear()
                return
            self.replays += 1
            recorder.replay()

        return outputs, replay

    def on_stream(self) -> AbstractContextManager[None]:
        return nullcontext()

    def memory(self) -> int:
        return 0


def what_outlives(run: WiredRun) -> dict[str, Tensor]:
    """Return all tensors of a run that outlive an iteration, except gradients."""
    state, step = run.state, run.trainer.step
    found = {
        f"{n}.{k}": t
        for n in ("G", "D", "G_ema")
        for k, t in getattr(state, n).state_dict().items()
        if "extra_state" not in k
    }
    for name in ("opt_G", "opt_D"):
        moments = getattr(state, name).state_dict()["state"]
        found |= {f"{name}.{i}.{key}": t for i, kept in moments.items() for key, t in kept.items() if t is not None}
    found |= {f"means.{names}": sums for names, sums in step.stats._sums.items()}
    return found | {f"scalar.{name}": number for name, number in step.draws.scalars.items()}
