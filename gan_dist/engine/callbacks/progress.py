"""Show the progress of training: log lines, a progress bar on a terminal; and pass the values to the trackers."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from pathlib import Path

import torch
from tqdm import tqdm

from gan_dist.checkpoint.state import State
from gan_dist.engine.clock import Clock
from gan_dist.engine.stats import RunningMeans
from gan_dist.errors import escaped
from gan_dist.parallel.distributed import Distributed
from gan_dist.report.log import FILE_ONLY, in_kimg
from gan_dist.report.tracking import Tracker

log = logging.getLogger(__name__)

_SHOWN = ("fid", "modes", "high_quality")  # metrics whose names begin so are shown in the progress bar


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
        decimals = 1 if self.total >= 1 else 3
        place = f"{{n:.{decimals}f}}/{self.total:.10g} kimg"
        self.bar = tqdm(
            total=self.total,
            initial=start_nimg / 1000,
            unit="kimg",
            disable=not (dist.is_main and sys.stderr.isatty()),
            bar_format=f"{{percentage:3.0f}}%|{{bar:20}}| {place} [{{elapsed}}<{{remaining}}]{{postfix}}",
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
    """Reports the means of losses, logits and gradient norms since the last report, speed (images/s) and memory.

    The values go to the trackers and to the log file, and to the terminal, where a progress bar shows them if there is
    one. The bar also shows the newest metrics, with the number of images at which they were measured.

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
        memory = _peak_memory(self.dist.device)
        self.tracker.scalars(state.nimg, {**values, "images_per_sec": speed, "memory_gib": memory})

        shown = f"D {values['loss_D']:.3f}  G {values['loss_G']:.3f}  {speed:.0f} img/s"
        left = max(0, self.total_nimg - state.nimg) / max(speed, 1e-9)
        log.info(
            "%s/%.10g kimg  %s  %.2f GiB  left %s",
            in_kimg(state.nimg),
            self.total_nimg / 1000,
            shown,
            memory,
            tqdm.format_interval(left),
            extra=None if self.bar.bar.disable else FILE_ONLY,
        )
        metrics = [f"{name} {value:.3g}" for name, value in state.metrics.items() if name.startswith(_SHOWN)]
        if metrics:
            shown += f"  {'  '.join(metrics)} at {in_kimg(state.metrics_nimg)} kimg"
        self.bar.bar.set_postfix_str(escaped(shown), refresh=False)


def _peak_memory(device: torch.device) -> float:
    """Return the most memory that this process has used so far: of its GPU if it has one, else of the machine. GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.partition("VmHWM:")[2].split()[0]) / 2**20
    except (OSError, IndexError):
        import resource  # Unix only

        # On Linux this is not asked first, because it may be what a launcher took before it became this process.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
