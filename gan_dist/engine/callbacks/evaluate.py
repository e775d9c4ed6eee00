"""Measure G_ema during training."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from gan_dist.checkpoint.state import State
from gan_dist.engine.callbacks.save import SaveCheckpoint
from gan_dist.engine.clock import Clock
from gan_dist.errors import Interrupted
from gan_dist.metrics import Evaluator
from gan_dist.parallel.distributed import Distributed
from gan_dist.parallel.stop import StopAgreement
from gan_dist.report.log import in_kimg
from gan_dist.report.tracking import Tracker

log = logging.getLogger(__name__)


class Evaluate:
    """Measures G_ema, for example its FID. All processes take part.

    The values are stored in the state of the run. The main process logs them, and passes them to the trackers together
    with the protocol by which they were measured. A stop signal breaks the evaluation off; a thread of the main process
    then writes a checkpoint at once.

    Args:
        every_nimg: number of images between two evaluations.
        evaluator: computes the metrics.
        tracker: records the metrics.
        clock: is paused meanwhile.
        dist: the processes.
        save: writes a checkpoint after a stop signal, and one if the FID is the lowest so far, except before the first
            iteration. From the second series of figures on, its number is part of the names of the values, so that no
            tracker or plot continues a series of another protocol.
        stop: tells whether to break off.

    Raises:
        Interrupted: on a call, in all processes, if one of them has received a stop signal.
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
        save: SaveCheckpoint,
        stop: StopAgreement,
    ) -> None:
        self.every_nimg, self.evaluator = every_nimg, evaluator
        self.tracker, self.clock, self.dist = tracker, clock, dist
        self.save, self.stop = save, stop

    def __call__(self, state: State) -> None:
        self.save.unmeasured = True
        with self.clock.paused(), self._saved_at_once(state):
            values = self.evaluator(state.G_ema, self._check)
        series = self.save.facts["series"]
        suffix = f"_series{series}" if series > 1 else ""
        state.metrics = {f"{name}{suffix}": value for name, value in values.items()}
        state.metrics_nimg, self.save.unmeasured = state.nimg, False
        if state.nimg:
            self.save.if_best(state)
        if self.dist.is_main:
            with self.clock.paused():
                self.tracker.scalars(state.nimg, {**state.metrics, "protocol": self.evaluator.protocol})
            shown = "  ".join(f"{name} {value:.4g}" for name, value in state.metrics.items())
            log.info("%s kimg  %s", in_kimg(state.nimg), shown)

    def _check(self) -> None:
        if self.stop.now():
            raise Interrupted

    @contextmanager
    def _saved_at_once(self, state: State) -> Iterator[None]:
        """A context in which a thread writes a checkpoint when this process receives a stop signal.

        A batch of an evaluation can take longer than the time that a scheduler leaves.
        """
        over = threading.Event()

        def watch() -> None:
            while not over.wait(0.2):
                if self.stop.requested:
                    self.save.now(state)
                    return

        thread = threading.Thread(target=watch, name="checkpoint at once", daemon=True)
        if self.dist.is_main:
            thread.start()
        try:
            yield
        finally:
            over.set()
            if self.dist.is_main:
                thread.join()
