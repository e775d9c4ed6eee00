"""Running means of the loop's figures, kept on the device until they are logged."""

from __future__ import annotations

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

    def rewind(self, nimg: int) -> None:
        """The run went back: forget what was added since the last line."""
        self._sums, self._counts = {}, {}
