"""Pictures of generated samples during training."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import nn

from gan_dist.checkpoint.state import State
from gan_dist.engine.clock import Clock
from gan_dist.report.tracking import Tracker

EARLIEST = 1000  # images; no early picture is made before


class SampleGrid:
    """Makes a picture of samples of G_ema and passes it to the trackers.

    Whoever starts a run wants to see soon if it works. So there are also two early pictures, after a hundredth and a
    tenth of the interval.

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
        early = (self.interval // 100, self.interval // 10)
        return next((place for place in early if place >= EARLIEST and nimg < place), self.interval)
