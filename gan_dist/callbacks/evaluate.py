"""FID, KID and Inception Score of G_ema during training."""

from __future__ import annotations

import logging

from gan_dist.distributed import Distributed
from gan_dist.metrics.evaluate import Evaluator
from gan_dist.state import State
from gan_dist.stats import Clock
from gan_dist.tracking import Tracker

log = logging.getLogger(__name__)


class Evaluate:
    """Every process takes part in measuring; the newest values are kept in the state, with the protocol on file."""

    at_start = True
    at_end = True

    def __init__(
        self, every_nimg: int, evaluator: Evaluator, tracker: Tracker, clock: Clock, dist: Distributed
    ) -> None:
        self.every_nimg, self.evaluator = every_nimg, evaluator
        self.tracker, self.clock, self.dist = tracker, clock, dist

    def __call__(self, state: State) -> None:
        with self.clock.paused():
            state.metrics = self.evaluator(state.G_ema)
        if self.dist.is_main:
            self.tracker.scalars(state.nimg, {**state.metrics, "protocol": self.evaluator.protocol})
            values = "  ".join(f"{name} {value:.4g}" for name, value in state.metrics.items())
            log.info("%.1f kimg  %s", state.nimg / 1000, values)
