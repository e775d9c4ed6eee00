"""Running means of the loop's figures, kept on the device until they are logged, and the clock of training."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from gan_dist.parallel.distributed import Distributed


class RunningMeans:
    """Sums and counts by name. `add` never waits for the device; `read` does, once for all names."""

    def __init__(self, dist: Distributed) -> None:
        self._dist = dist
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, name: str, value: Tensor) -> None:
        """Add one value, the mean over this process's share of a batch; equal shares make the mean over all exact."""
        value = value.detach().float()
        self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._counts[name] = self._counts.get(name, 0) + 1

    def read(self) -> dict[str, float]:
        """Means over the values since the last call and over all processes (all must call it), and start anew."""
        if not self._sums:
            return {}
        means = torch.stack([total / self._counts[name] for name, total in self._sums.items()])
        result = dict(zip(self._sums, self._dist.mean(means).tolist()))
        self._sums, self._counts = {}, {}
        return result


class Clock:
    """Seconds of training since `start`, without those spent in `paused`."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self._zero = time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self._zero

    @contextmanager
    def paused(self) -> Iterator[None]:
        before = time.perf_counter()
        try:
            yield
        finally:
            self._zero += time.perf_counter() - before
