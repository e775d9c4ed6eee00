"""Running means of losses, logits and gradient norms. They stay on the device until they are logged."""

from __future__ import annotations

import torch
from torch import Tensor

from gan_dist.parallel.distributed import Distributed


class RunningMeans:
    """Collects values by name and returns their means.

    `add` does not make the host wait for the device. `read` waits once for all names together.

    Args:
        dist: the processes, over which the means are taken.
    """

    def __init__(self, dist: Distributed) -> None:
        self._dist = dist
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, name: str, value: Tensor) -> None:
        """Add a scalar: the mean of a quantity over some of the images that this process computes.

        Always pass means over equally many images: only then is the mean of these means the mean over all images.
        """
        value = value.detach().float()
        self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._counts[name] = self._counts.get(name, 0) + 1

    def read(self) -> dict[str, float]:
        """Return the mean of each name's values since the last call, over all processes, and forget the values.

        All processes call this function together, because it makes an all-reduce.
        """
        if not self._sums:
            return {}
        means = torch.stack([total / self._counts[name] for name, total in self._sums.items()])
        result = dict(zip(self._sums, self._dist.mean(means).tolist()))
        self._sums, self._counts = {}, {}
        return result

    def rewind(self, nimg: int) -> None:
        """The run has gone back to the checkpoint at `nimg` images: forget the values since the last `read`."""
        self._sums, self._counts = {}, {}
