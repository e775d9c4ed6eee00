"""Pictures of generated samples during training."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import nn

from gan_dist.checkpoint.state import State
from gan_dist.engine.clock import Clock
from gan_dist.report.tracking import Tracker


class SampleGrid:
    """Makes a picture of samples of G_ema and passes it to the trackers.

    Args:
        every_nimg: number of images between two pictures.
        draw: makes the picture, uint8 (H, W, C), from G_ema. All processes call it together.
        tracker: records the picture.
        clock: is paused meanwhile.
    """

    at_start = True
    at_end = True

    def __init__(
        self, every_nimg: int, draw: Callable[[nn.Module], np.ndarray], tracker: Tracker, clock: Clock
    ) -> None:
        self.every_nimg, self.draw, self.tracker, self.clock = every_nimg, draw, tracker, clock

    def __call__(self, state: State) -> None:
        with self.clock.paused():
            self.tracker.image(state.nimg, "grid", self.draw(state.G_ema))
