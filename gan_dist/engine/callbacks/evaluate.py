"""Measure G_ema during training."""

from __future__ import annotations

import logging
from collections.abc import Callable

from gan_dist.checkpoint.state import State
from gan_dist.engine.clock import Clock
from gan_dist.metrics import Evaluator
from gan_dist.parallel.distributed import Distributed
from gan_dist.report.log import in_kimg
from gan_dist.report.tracking import Tracker

log = logging.getLogger(__name__)


class Evaluate:
    """Measures G_ema, for example its FID. All processes take part.

    The values are stored in the state of the run. The main process logs them, and passes them to the trackers together
    with the protocol by which they were measured.

    Args:
        every_nimg: number of images between two evaluations.
        evaluator: computes the metrics.
        tracker: records the metrics.
        clock: is paused meanwhile.
        dist: the processes.
        after: called after each evaluation, except the one before the first iteration; None for no call.
        series: number of the series of figures. From the second one on it is part of the names of the values, so that
            no tracker or plot continues a series of another protocol.
    """

    at_start = True
    at_end = True

    def __init__(
        self,
        every_nimg: int,
        evaluator: Evaluator,
        tracker: Tracker,
        clock: Clock,
        dist: Distributed,
        after: Callable[[State], None] | None,
        series: int = 1,
    ) -> None:
        self.every_nimg, self.evaluator = every_nimg, evaluator
        self.tracker, self.clock, self.dist = tracker, clock, dist
        self.after, self.suffix = after, f"_series{series}" if series > 1 else ""

    def __call__(self, state: State) -> None:
        with self.clock.paused():
            values = self.evaluator(state.G_ema)
            state.metrics = {f"{name}{self.suffix}": value for name, value in values.items()}
            state.metrics_nimg = state.nimg
        if self.after and state.nimg:
            self.after(state)
        if self.dist.is_main:
            with self.clock.paused():
                self.tracker.scalars(state.nimg, {**state.metrics, "protocol": self.evaluator.protocol})
            shown = "  ".join(f"{name} {value:.4g}" for name, value in state.metrics.items())
            log.info("%s kimg  %s", in_kimg(state.nimg), shown)
