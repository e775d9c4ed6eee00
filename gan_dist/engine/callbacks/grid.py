"""Pictures of generated samples during training."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import nn

from gan_dist.checkpoint.state import State
from gan_dist.engine.clock import Clock
from gan_dist.report.tracking import Tracker

EARLIEST = 1000  # images; before, only the first iteration is followed by a picture


class SampleGrid:
    """Makes a picture of samples of G_ema and passes it to the trackers.

    Whoever starts a run wants to see soon if it works. So there are also early pictures: after the first iteration, and
    after a hundredth and a tenth of the interval. A run with a short interval has none.

    Args:
        interval: number of images between two pictures; 0 for no pictures.
        start_nimg: number of images seen when this start of the run begins.
        draw: makes the picture, uint8 (H, W, C), from G_ema. All processes call it together.
        tracker: records the picture.
        clock: is paused meanwhile.

    Attributes:
        every_nimg: number of images between two calls at present: less than the interval as long as early pictures are
            to come.
    """

    at_start = True
    at_end = True

    def __init__(
        self, interval: int, start_nimg: int, draw: Callable[[nn.Module], np.ndarray], tracker: Tracker, clock: Clock
    ) -> None:
        self.interval, self.draw, self.tracker, self.clock = interval, draw, tracker, clock
        self.every_nimg = self._next(start_nimg)

    def __call__(self, state: State) -> None:
        with self.clock.paused():
            self.tracker.image(state.nimg, "grid", self.draw(state.G_ema))
        self.every_nimg = self._next(state.nimg)

    def _next(self, nimg: int) -> int:
        """Return the number of images of the first picture after `nimg` images; after the early ones, the interval."""
        early = [place for place in (self.interval // 100, self.interval // 10) if place >= EARLIEST]
        first = [1] if early else []  # any iteration shows more than one image
        return next((place for place in first + early if nimg < place), self.interval)
