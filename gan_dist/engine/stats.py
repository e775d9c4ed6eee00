"""Running means of losses, logits and gradient norms. They stay on the device until they are logged."""

from __future__ import annotations

import math
from collections import deque

import torch
from torch import Tensor

from gan_dist.parallel.distributed import Distributed

KEPT = 1000  # values of each name that are kept until the next `read`


class RunningMeans:
    """Collects values by name and returns their means.

    `add` does not make the host wait for the device. `read` waits once for all names together. A value that is not
    finite, as an overflow in fp16 makes it, does not spoil the mean of the others.

    Args:
        dist: the processes, over which the means are taken.
    """

    def __init__(self, dist: Distributed) -> None:
        self._dist = dist
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._values: dict[str, deque[Tensor]] = {}

    def add(self, name: str, value: Tensor) -> None:
        """Add a scalar: the mean of a quantity over some of the images that this process computes.

        Always pass means over equally many images: only then is the mean of these means the mean over all images.
        """
        value = value.detach().float()
        self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._counts[name] = self._counts.get(name, 0) + 1
        self._values.setdefault(name, deque(maxlen=KEPT)).append(value)

    def read(self) -> dict[str, float]:
        """Return the mean of each name's values since the last call, over all processes, and forget the values.

        If a mean is not finite, it is replaced by the mean of the finite ones among the last KEPT values, if there are
        any, and `<name>_nonfinite` says which share of the values was left out. All processes call this function
        together, because it makes an all-reduce.
        """
        if not self._sums:
            return {}
        means = torch.stack([total / self._counts[name] for name, total in self._sums.items()])
        result = dict(zip(self._sums, self._dist.mean(means).tolist()))
        for name in [name for name, mean in result.items() if not math.isfinite(mean)]:
            values = torch.stack(list(self._values[name]))
            good = values.isfinite()
            sums = torch.stack([values.where(good, 0).mean(), good.float().mean()])
            total, share = self._dist.mean(sums).tolist()
            result[f"{name}_nonfinite"] = 1 - share
            if share:
                result[name] = total / share
        self.rewind(0)
        return result

    def rewind(self, nimg: int) -> None:
        """The run has gone back to the checkpoint at `nimg` images: forget the values since the last `read`."""
        self._sums, self._counts, self._values = {}, {}, {}
