"""Evaluate a generator: feature extractors, and FID, KID, Inception Score, precision and recall.

The name of a metric ends with the name of the feature extractor, for example `fid_classifier` or `fid_inception`,
because values from different extractors cannot be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from torch import nn

from gan_dist.parallel.distributed import Distributed


class Evaluator(Protocol):
    """An object that measures generators. All processes call it together."""

    @property
    def protocol(self) -> dict[str, Any]:
        """The facts that the metrics depend on, such as the number of images. Compare only values of one protocol."""

    def __call__(self, G: nn.Module, check: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Measure a generator in eval mode; returns the value of each metric by its name.

        Args:
            G: the generator.
            check: called between batches, equally often in all processes. It raises an error in all of them to break
                the measurement off.
        """


def in_turn(dist: Distributed, count: int, check: Callable[[], None]) -> Iterator[int]:
    """Yield the numbers of this process's share of `count` batches, and call `check` before each.

    `check` is called equally often in all processes, although their shares may differ by one batch.
    """
    share = dist.share(count)
    for turn in range(-(-count // dist.world_size)):
        check()
        yield from share[turn : turn + 1]
