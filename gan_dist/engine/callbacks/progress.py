"""Show the progress of training: a progress bar on a terminal, else log lines; and pass the values to the trackers."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress

from tqdm import tqdm

from gan_dist.checkpoint.state import State
from gan_dist.engine.clock import Clock
from gan_dist.engine.stats import RunningMeans
from gan_dist.parallel.distributed import Distributed
from gan_dist.report.tracking import Tracker

log = logging.getLogger(__name__)

_SHOWN = ("fid", "modes", "high_quality")  # metrics whose names begin so are shown


class ProgressBar:
    """A progress bar with kimg, losses, speed and remaining time. Without a terminal it shows nothing.

    Args:
        start_nimg: number of images seen when this start of the run begins.
        total_nimg: length of the run in images.
        dist: the processes; only the main process shows the bar.
    """

    every_nimg = 1  # called after every iteration; tqdm draws the bar at most four times per second
    at_start = True
    at_end = False

    def __init__(self, start_nimg: int, total_nimg: int, dist: Distributed) -> None:
        self.total = total_nimg / 1000
        self.bar = tqdm(
            total=self.total,
            initial=start_nimg / 1000,
            unit="kimg",
            disable=not (dist.is_main and sys.stderr.isatty()),
            bar_format="{percentage:3.0f}%|{bar:20}| {n:.1f}/{total:.0f} kimg [{elapsed}<{remaining}]{postfix}",
            mininterval=0.25,
        )

    def __call__(self, state: State) -> None:
        try:
            self.bar.update(min(state.nimg / 1000, self.total) - self.bar.n)
        except OSError:  # the terminal is gone
            self.bar.disable = True

    def close(self) -> None:
        """End the progress bar, so that the terminal can be used again."""
        with suppress(OSError):
            self.bar.close()


class LogProgress:
    """Reports the means of losses, logits and gradient norms since the last report, and the speed in images/s.

    The values go to the trackers and to the progress bar. Without a terminal they are logged with the remaining time.

    Args:
        every_nimg: number of images between two reports.
        start_nimg: number of images seen when this start of the run begins.
        total_nimg: length of the run in images.
        stats: the running means to report.
        tracker: records the values.
        bar: the progress bar.
        clock: the time spent on training, for the speed.
        dist: the processes; all take part in the means, and the main process reports them.
    """

    at_start = False
    at_end = True

    def __init__(
        self,
        every_nimg: int,
        start_nimg: int,
        total_nimg: int,
        stats: RunningMeans,
        tracker: Tracker,
        bar: ProgressBar,
        clock: Clock,
        dist: Distributed,
    ) -> None:
        self.every_nimg, self.total_nimg = every_nimg, total_nimg
        self.stats, self.tracker, self.bar, self.clock, self.dist = stats, tracker, bar, clock, dist
        self._last = (0.0, start_nimg)

    def __call__(self, state: State) -> None:
        values = self.stats.read()
        if not values or not self.dist.is_main:
            return
        if state.nimg < self._last[1]:  # the run has gone back to a checkpoint
            self._last = (self.clock.seconds(), state.nimg)
            return
        (then, nimg), now = self._last, self.clock.seconds()
        self._last = (now, state.nimg)
        speed = (state.nimg - nimg) / max(now - then, 1e-9)
        self.tracker.scalars(state.nimg, {**values, "images_per_sec": speed})

        shown = [f"D {values['loss_D']:.3f}", f"G {values['loss_G']:.3f}", f"{speed:.0f} img/s"]
        shown += [f"{name} {value:.3g}" for name, value in state.metrics.items() if name.startswith(_SHOWN)]
        self.bar.bar.set_postfix_str("  ".join(shown), refresh=False)
        if self.bar.bar.disable:
            left = (self.total_nimg - state.nimg) / max(speed, 1e-9)
            where = f"{state.nimg / 1000:.1f}/{self.total_nimg / 1000:.0f} kimg"
            log.info("%s  %s  left %s", where, "  ".join(shown), tqdm.format_interval(left))
