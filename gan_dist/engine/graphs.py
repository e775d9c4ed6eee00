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
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

WARM_UP = 3  # calls of a function before it is captured: they make the optimizer's state and choose kernels


class Graphs:
    """Captures each function after a few calls, and replays it from then on.

    The calls before are made on the stream on which the function is captured. All graphs share one pool of memory.

    Args:
        device: the GPU.
        say: gets a line about each capture.
    """

    def __init__(self, device: torch.device, say: Callable[[str], None]) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._say = say
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
        if torch.cuda.current_stream() != self._stream:
            with self.stream():
                return self(name, function, *inputs)
        if name not in self._captured:
            self._calls[name] += 1
            if self._full or self._calls[name] <= WARM_UP:
                return function(*inputs)
            try:
                self._captured[name] = self._capture(name, function, inputs)
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                self._give_up(name)
                return function(*inputs)
        return self._captured[name](*inputs)

    @contextmanager
    def stream(self) -> Iterator[None]:
        """A context that runs everything on the stream of the graphs. Calls outside of it work too, but take longer."""
        outer = torch.cuda.current_stream()
        self._stream.wait_stream(outer)
        with torch.cuda.stream(self._stream):
            yield
        outer.wait_stream(self._stream)

    def rewind(self, nimg: int) -> None:
        """The run has gone back to the checkpoint at `nimg` images: tensors may have other addresses now."""
        self._captured.clear()
        self._calls.clear()

    def _capture(self, name: str, function: Callable[..., Any], inputs: Any) -> Callable[..., Any]:
        """Capture a function, which runs nothing; returns a function that replays it."""
        torch.cuda.synchronize()
        gc.collect()
        torch.cuda.empty_cache()
        started, before = time.perf_counter(), torch.cuda.memory_reserved()
        slots = tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, inputs)
        graph = torch.cuda.CUDAGraph()
        # In mode thread_local, threads that copy batches or checkpoints meanwhile do not disturb the capture.
        with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
            outputs = function(*slots)
        seconds, held = time.perf_counter() - started, (torch.cuda.memory_reserved() - before) / 2**20
        self._say(f"captured {name} as a CUDA graph in {seconds:.1f} s; it holds {held:.0f} MiB of GPU memory")

        def replay(*inputs: Any) -> Any:
            for slot, given in zip(slots, inputs):
                if isinstance(slot, Tensor):
                    slot.copy_(given, non_blocking=True)
            graph.replay()
            return outputs

        return replay

    def _give_up(self, name: str) -> None:
        self._full = True
        self._captured.clear()
        gc.collect()
        torch.cuda.empty_cache()
        self._say(f"no CUDA graphs from here on: there is not enough GPU memory to capture {name}")


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Tell if an error, or the one that it followed, says that the GPU's memory is full."""
    return error is not None and (isinstance(error, torch.OutOfMemoryError) or _is_out_of_memory(error.__context__))
