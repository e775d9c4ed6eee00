"""What a person sees: a live line on a terminal, plain lines elsewhere, and the same figures for the trackers."""

from __future__ import annotations

import logging
import sys

from tqdm import tqdm

from gan_dist.checkpoint.state import State
from gan_dist.engine.clock import Clock
from gan_dist.engine.stats import RunningMeans
from gan_dist.parallel.distributed import Distributed
from gan_dist.report.tracking import Tracker

log = logging.getLogger(__name__)

_SHOWN = ("fid", "modes", "high_quality")  # metrics that are on the line


class ProgressBar:
    """kimg, speed and time left on a terminal; nothing where there is none."""

    every_nimg = 1  # every iteration: tqdm itself sees to it that the terminal is not flooded
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
        self.bar.update(min(state.nimg / 1000, self.total) - self.bar.n)

    def close(self) -> None:
        self.bar.close()


class LogProgress:
    """Means of losses, outputs and norms since the last line, images/s, and on plain output the time left."""

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
        if state.nimg < self._last[1]:  # the run went back
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
