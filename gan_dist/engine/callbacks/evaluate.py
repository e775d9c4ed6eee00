"""Metrics of G_ema during training."""

from __future__ import annotations

import logging
from collections.abc import Callable

from gan_dist.checkpoint.state import State
from gan_dist.engine.clock import Clock
from gan_dist.metrics import Evaluator
from gan_dist.parallel.distributed import Distributed
from gan_dist.report.tracking import Tracker

log = logging.getLogger(__name__)


class Evaluate:
    """Every process takes part in measuring; the newest values are kept in the state, with the protocol on file."""

    at_start = True
    at_end = True

    def __init__(
        self,
        every_nimg: int,
        evaluator: Evaluator,
        tracker: Tracker,
        clock: Clock,
        dist: Distributed,
        then: Callable[[State], None] | None,
    ) -> None:
        """`then` is called after each evaluation but that at the very start."""
        self.every_nimg, self.evaluator = every_nimg, evaluator
        self.tracker, self.clock, self.dist = tracker, clock, dist
        self.then = then

    def __call__(self, state: State) -> None:
        with self.clock.paused():
            state.metrics, state.metrics_nimg = self.evaluator(state.G_ema), state.nimg
        if self.then and state.nimg:
            self.then(state)
        if self.dist.is_main:
            self.tracker.scalars(state.nimg, {**state.metrics, "protocol": self.evaluator.protocol})
            values = "  ".join(f"{name} {value:.4g}" for name, value in state.metrics.items())
            log.info("%.1f kimg  %s", state.nimg / 1000, values)
