"""Running means of losses, logits and gradient norms. They stay on the device until they are logged."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gan_dist.parallel.distributed import Distributed

Figures = dict[str, Tensor]  # scalars on the device, by name


def mean_of(figures: Sequence[Figures]) -> Figures:
    """Return the mean of each figure over the micro-batches of a step."""
    if len(figures) == 1:
        return figures[0]
    return {name: torch.stack([of_one[name] for of_one in figures]).mean() for name in figures[0]}


class RunningMeans:
    """Collects values by name and returns their means.

    `add` does not make the host wait for the device. `read` waits once for all names together. A value that is not
    finite, as an overflow in fp16 makes it, does not spoil the mean of the others. The sums are kept in tensors that
    are changed in place, so that `add` can be part of a CUDA graph.

    Args:
        dist: the processes, over which the means are taken.
    """

    def __init__(self, dist: Distributed) -> None:
        self._dist = dist
        # For each set of names that was added together: a row with the sums of the finite values, a row with their
        # number, and a row with the number of all values.
        self._sums: dict[tuple[str, ...], Tensor] = {}

    def add(self, figures: Figures) -> None:
        """Add one value of each of some quantities: scalars, each a mean over images that this process computes.

        Always pass means over equally many images: only then is the mean of these means the mean over all images.
        """
        values = torch.stack([value.detach().float() for value in figures.values()])
        names = tuple(figures)
        if names not in self._sums:
            self._sums[names] = torch.zeros(3, len(names), device=values.device)
        total, finite, number = self._sums[names]
        total.add_(torch.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0))
        finite.add_(values - values == 0)
        number.add_(1)

    def read(self) -> dict[str, float]:
        """Return the mean of each name's values since the last call, over all processes, and forget the values.

        Values that are not finite are left out of the mean, and `<name>_nonfinite` says which share of all they are.
        If no value is finite, the mean is NaN. All processes call this function together, because it makes an
        all-reduce.
        """
        if not self._sums:
            return {}
        sums = self._dist.mean(torch.cat([*self._sums.values()], dim=1))
        self.rewind(0)
        found: dict[str, list[float]] = {}
        for name, column in zip([name for names in self._sums for name in names], sums.t().tolist()):
            found[name] = [a + b for a, b in zip(found.get(name, [0.0] * 3), column)]
        means = {name: _mean(total, finite) for name, (total, finite, number) in found.items() if number}
        shares = {f"{name}_nonfinite": 1 - finite / number for name, (_, finite, number) in found.items() if number}
        return {**means, **{name: share for name, share in shares.items() if share}}

    def rewind(self, nimg: int) -> None:
        """The run has gone back to the checkpoint at `nimg` images: forget the values since the last `read`."""
        for sums in self._sums.values():
            sums.zero_()


def _mean(total: float, number: float) -> float:
    return total / number if number else float("nan")
