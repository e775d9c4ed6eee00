"""Checkpoints during training."""

from __future__ import annotations

import logging
import math
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gan_dist.checkpoint.find import NETWORKS, fid_of
from gan_dist.checkpoint.state import State
from gan_dist.checkpoint.write import Snapshot, prune, take_snapshot, write_checkpoint
from gan_dist.parallel.distributed import Distributed

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay: see `gan_dist.settings.schema.Checkpoint`."""

    keep: int
    every_nimg: int
    best: bool


class SaveCheckpoint:
    """Copies the run off the device when one is due; a thread writes it. One that fails is reported, no more.

    Args:
        facts: see `gan_dist.checkpoint.write.take_snapshot`.
        config: the run's resolved config, YAML.
    """

    at_start = False
    at_end = False  # `now` writes the last one

    def __init__(
        self,
        every_nimg: int,
        run_dir: Path,
        facts: dict[str, Any],
        config: str,
        retention: Retention,
        dist: Distributed,
    ) -> None:
        self.every_nimg, self.run_dir, self.facts, self.config = every_nimg, run_dir, facts, config
        self.retention, self.dist = retention, dist
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[bool] | None = None
        self._newest = -1
        self._lowest = math.inf  # FID of the checkpoints that this program has written

    def __call__(self, state: State) -> None:
        if not self.dist.is_main or state.nimg == self._newest:
            return
        if self._pending and not self._pending.done():
            log.warning("%.1f kimg: the checkpoint before is still being written; none now", state.nimg / 1000)
            return
        self._newest = state.nimg
        self._pending = self._writer.submit(self._write, take_snapshot(state, self.facts))

    def if_best(self, state: State) -> None:
        """Save a run whose FID, just measured, is lower than that of any checkpoint, after the one being written."""
        if not self.dist.is_main:
            return
        self.wait()
        if fid_of(state.metrics) < self._lowest:
            self._newest = -1  # what was written of this moment before it was measured does not have the result
            self(state)

    def rewind(self, nimg: int) -> None:
        """The run goes back, and will come to the same numbers of images again, with other weights.

        Waits until the checkpoint that is being written is on disk.
        """
        self.wait()
        self._newest, self._lowest = -1, math.inf

    def now(self, state: State) -> bool:
        """Have this moment on disk before returning; False if that failed."""
        if not self.dist.is_main or (self.wait() and state.nimg == self._newest):
            return True
        self._newest = -1
        self(state)
        return self.wait()

    def wait(self) -> bool:
        """Wait for the writer; False if its last checkpoint failed."""
        return self._pending is not None and self._pending.result()

    def _write(self, snapshot: Snapshot) -> bool:
        kimg = snapshot.facts["nimg"] / 1000
        try:
            snapshot.arrived()
            # By numpy: torch would start threads of this thread's own, and with more of them than cores OpenMP lets
            # those of training sleep between any two operations. A third of the speed was lost after one checkpoint.
            if not all(np.isfinite(t.numpy()).all() for name in NETWORKS for t in snapshot.tensors[name].values()):
                raise ValueError("weights are not finite")
            write_checkpoint(self.run_dir, snapshot, self.config)
            if snapshot.facts["metrics_nimg"] == snapshot.facts["nimg"]:
                self._lowest = min(self._lowest, fid_of(snapshot.facts["metrics"]))
            prune(self.run_dir, self.retention.keep, self.retention.every_nimg, self.retention.best)
        except Exception as error:  # whatever the disk did: training goes on
            log.error("no checkpoint at %.1f kimg: %s", kimg, error)
            self._newest = -1
            return False
        return True
