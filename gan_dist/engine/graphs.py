"""Run functions of tensors as CUDA graphs.

A CUDA graph is a recording of all kernels that a function starts. To replay it costs the host one call, however many
kernels it has. A replay runs the same kernels on the same memory, and no line of Python. So such a function must not
read a value on the host, and whatever it reads and leaves behind must keep its address. `tests/recorder.py` checks both
without a GPU.
"""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

WARM_UP = 3  # calls of a function before it is captured: they make the optimizer's state and choose kernels


class Capture(Protocol):
    """Records functions of tensors; `CudaCapture` is the one for GPUs."""

    def __call__(self, function: Callable[..., Any], inputs: Any) -> tuple[Any, Callable[[], None]]:
        """Record a function: return its results, which hold no values yet, and a function that computes them."""

    def on_stream(self) -> AbstractContextManager[Any]:
        """A context for all calls of the functions, and best for all that runs between them."""

    def memory(self) -> int:
        """The number of bytes of the device's memory that this process has reserved."""


class Graphs:
    """Captures each function after a few calls, and replays it from then on.

    Args:
        capture: records the functions.
        say: gets a line about each capture.
    """

    def __init__(self, capture: Capture, say: Callable[[str], None]) -> None:
        self.capture, self.say = capture, say
        self._calls: Counter[str] = Counter()
        self._captured: dict[str, Callable[..., Any]] = {}
        self._full = False  # there is not enough memory for graphs

    def __call__(self, name: str, function: Callable[..., Any], *inputs: Any) -> Any:
        """Return `function(*inputs)`.

        Args:
            name: what the function is called in the log. Functions with one name do the same.
            function: a function of tensors, which may also change other tensors in place.
            inputs: tensors, or None; of one shape in all calls with one name.

        Returns:
            Tensors in tuples and dicts. The next call with this name overwrites them.
        """
        with self.capture.on_stream():
            if name not in self._captured and not self._can_capture(name, function, inputs):
                return function(*inputs)
            return self._captured[name](*inputs)

    def rewind(self, nimg: int) -> None:
        """The run has gone back to the checkpoint at `nimg` images: tensors may have other addresses now."""
        self._captured.clear()
        self._calls.clear()

    def _can_capture(self, name: str, function: Callable[..., Any], inputs: Any) -> bool:
        """Capture a function if it is time to; returns False if it is not, or if there is not enough memory."""
        self._calls[name] += 1
        if self._full or self._calls[name] <= WARM_UP:
            return False
        started, before = time.perf_counter(), self.capture.memory()
        try:
            slots = tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, inputs)
            outputs, compute = self.capture(function, slots)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            self._full = True
            self._captured.clear()
            self.say(f"no CUDA graphs from here on: there is not enough GPU memory to capture {name}")
            return False
        seconds, held = time.perf_counter() - started, (self.capture.memory() - before) / 2**20
        self.say(f"captured {name} as a CUDA graph in {seconds:.1f} s; it holds {held:.0f} MiB of GPU memory")

        def replay(*inputs: Any) -> Any:
            for slot, given in zip(slots, inputs):
                if isinstance(slot, Tensor):
                    slot.copy_(given, non_blocking=True)
            compute()
            return outputs

        self._captured[name] = replay
        return True


class CudaCapture:
    """Records functions as CUDA graphs, which share one pool of memory, on one stream.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[..., Any], inputs: Any) -> tuple[Any, Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        # In mode thread_local, threads that copy batches or checkpoints meanwhile do not disturb the capture.
        with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
            outputs = function(*inputs)
        return outputs, graph.replay

    @contextmanager
    def on_stream(self) -> Iterator[None]:
        outer = torch.cuda.current_stream()
        if outer == self._stream:
            yield
            return
        self._stream.wait_stream(outer)
        with torch.cuda.stream(self._stream):
            yield
        outer.wait_stream(self._stream)

    def memory(self) -> int:
        gc.collect()
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved()


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Tell if an error, or the one that it followed, says that the GPU's memory is full."""
    return error is not None and (isinstance(error, torch.OutOfMemoryError) or _is_out_of_memory(error.__context__))
