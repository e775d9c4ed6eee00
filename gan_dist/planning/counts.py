"""The counts of an iteration for any batch: two batches are counted, and the others are computed from these two."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from gan_dist.data import DataInfo
from gan_dist.planning.count import Iteration, Operation, count_iteration
from gan_dist.settings.schema import Config


def counter_of(config: Config, info: DataInfo) -> Callable[[int], Iteration]:
    """Return a function from the per-process batch to the counts of an iteration.

    Every count grows linearly with the batch. So two batches are counted, and the others are computed from these two. A
    batch that runs in several micro-batches is counted.

    Args:
        config: the settings of the run.
        info: the data set.
    """
    known: dict[int, Iteration] = {}
    whole = config.train.micro_batch_size or 2**30  # the largest batch that runs in one piece

    def count(share: int) -> Iteration:
        if share not in known:
            first, second, *_ = *(other for other in known if max(other, share) <= whole), 0, 0
            if second and len(known[first].operations) == len(known[second].operations):
                known[share] = _between(known[first], known[second], (share - first) / (second - first))
            else:
                known[share] = count_iteration(config, info, share)
        return known[share]

    return count


def _between(a: Iteration, b: Iteration, part: float) -> Iteration:
    """Return the counts at `part` of the way from `a` (0) to `b` (1), which may lie beyond them."""

    def at(x: int, y: int) -> int:
        return max(0, round(x + part * (y - x)))

    operations = [
        Operation(at(x.flops, y.flops), at(x.nbytes, y.nbytes), x.convolution, x.half, x.backward_of)
        for x, y in zip(a.operations, b.operations)
    ]
    return replace(a, operations=operations, peak=at(a.peak, b.peak))
