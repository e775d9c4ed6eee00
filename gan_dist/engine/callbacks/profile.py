"""Record a trace of a few iterations with torch's profiler."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from gan_dist.checkpoint.state import State

log = logging.getLogger(__name__)

SKIPPED, WARM, TRACED = 20, 3, 5  # numbers of iterations: not profiled, profiled but discarded, and recorded


class Profile:
    """Records a few iterations, after the first ones, in a file that Perfetto and chrome://tracing can open.

    Args:
        path: the file to write.
    """

    every_nimg = 1  # called after every iteration
    at_start = False
    at_end = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self._iterations, self._traced = 0, False
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
        when = schedule(skip_first=SKIPPED, wait=0, warmup=WARM, active=TRACED, repeat=1)
        self._profile = profile(activities=activities, schedule=when, on_trace_ready=self._write, record_shapes=True)
        self._profile.start()

    def __call__(self, state: State) -> None:
        self._iterations += 1
        self._profile.step()

    def close(self) -> None:
        """End the profiler, which writes what it has recorded; if that is nothing, say so."""
        self._profile.stop()
        if not self._traced:
            log.warning(
                "train.profile=true: no trace was written, because it begins after %d iterations, and this start of "
                "the run made %d",
                SKIPPED + WARM,
                self._iterations,
            )

    def _write(self, traced: profile) -> None:
        self._traced = True
        try:
            self.path.unlink(missing_ok=True)  # a backup by hard links may share the file
            traced.export_chrome_trace(str(self.path))
        except (OSError, RuntimeError) as error:  # for example a full disk
            log.warning("%s: cannot write the trace: %s", self.path, error)
        else:
            log.info("traced %d iterations into %s", self._iterations - SKIPPED - WARM, self.path)
