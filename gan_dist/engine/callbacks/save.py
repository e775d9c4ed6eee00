"""Write checkpoints during training."""

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
from gan_dist.place import Place

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Retention:
    """Which checkpoints are kept; see `gan_dist.settings.schema.Checkpoint`.

    Attributes:
        keep: number of newest checkpoints to keep; 0 for all.
        every_nimg: also keep one checkpoint of every so many images; 0 for none.
        best: also keep the checkpoint with the lowest FID.
    """

    keep: int
    every_nimg: int
    best: bool


class SaveCheckpoint:
    """Writes checkpoints. Only the main process does anything.

    A call copies the state of the run from the device, and a thread writes the copy to disk while training goes on. If
    writing fails, the error is logged and training goes on. If the run directory was moved, a call raises UserError.

    Args:
        every_nimg: number of images between two checkpoints; 0 for none.
        run_dir: the run directory.
        facts: see `gan_dist.checkpoint.write.take_snapshot`.
        config: the run's resolved config as YAML.
        retention: which checkpoints are kept.
        dist: the processes.

    Attributes:
        unmeasured: the evaluation that is due at this moment of the run is not complete. Checkpoints say so, and a run
            that goes on from one of them measures first.
    """

    at_start = False
    at_end = False  # the trainer calls `now` at the end

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
        self.unmeasured = False
        self._place = Place(run_dir) if dist.is_main else None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[bool] | None = None
        # What the newest checkpoint holds; None if there is none, or if it must be written again.
        self._newest: tuple[int, int, bool] | None = None
        self._lowest = math.inf  # lowest FID of the checkpoints that this object has written

    def __call__(self, state: State) -> None:
        if not self._place or self._stamp(state) == self._newest:
            return
        self._place.check()
        if self._pending and not self._pending.done():
            log.warning("%.1f kimg: skipped a checkpoint; the previous one is still being written", state.nimg / 1000)
            return
        self._newest = self._stamp(state)
        snapshot = take_snapshot(state, {**self.facts, "unmeasured": self.unmeasured})
        self._pending = self._writer.submit(self._write, snapshot)

    def if_best(self, state: State) -> None:
        """Save a checkpoint if the FID that was just measured is lower than that of each checkpoint written before.

        Only the checkpoints count that were written since this program started, or since the run went back. Nothing is
        saved if the run keeps no best checkpoint, or writes none at all.

        Waits first until the checkpoint that is being written is on disk.
        """
        if not (self.dist.is_main and self.retention.best and self.every_nimg):
            return
        self.wait()
        if fid_of(state.metrics) < self._lowest:
            self(state)

    def rewind(self, nimg: int) -> None:
        """The run is about to go back: it must write checkpoints again that it reaches a second time.

        Waits until the checkpoint that is being written is on disk. `nimg` is not used.
        """
        self.wait()
        self._newest, self._lowest = None, math.inf

    def now(self, state: State) -> bool:
        """Save a checkpoint and wait until it is on disk; returns False if this failed.

        A checkpoint of the same weights is written again if it does not have the newest metrics.
        """
        if not self.dist.is_main or (self.wait() and self._stamp(state) == self._newest):
            return True
        self._newest = None
        self(state)
        return self.wait()

    def wait(self) -> bool:
        """Wait until the thread has no checkpoint left to write.

        Returns:
            True if the last checkpoint was written, False if that failed or if there was none.
        """
        return self._pending is not None and self._pending.result()

    def _stamp(self, state: State) -> tuple[int, int, bool]:
        """Return what distinguishes the contents of two checkpoints."""
        return state.nimg, state.metrics_nimg, self.unmeasured

    def _write(self, snapshot: Snapshot) -> bool:
        kimg = snapshot.facts["nimg"] / 1000
        try:
            snapshot.arrived()
            # This check uses numpy. torch would start new OpenMP threads for this thread. With more threads than cores,
            # OpenMP lets the threads of training sleep between operations, which made training a third slower.
            if not all(np.isfinite(t.numpy()).all() for name in NETWORKS for t in snapshot.tensors[name].values()):
                raise ValueError("weights are not finite")
            if self._place:
                self._place.check()  # again, since what comes before takes time
            write_checkpoint(self.run_dir, snapshot, self.config)
            if snapshot.facts["metrics_nimg"] == snapshot.facts["nimg"]:
                self._lowest = min(self._lowest, fid_of(snapshot.facts["metrics"]))
            prune(self.run_dir, self.retention.keep, self.retention.every_nimg, self.retention.best)
        except Exception as error:  # an error while writing must not end the training
            log.error("no checkpoint at %.1f kimg: %s", kimg, error)
            self._newest = None
            return False
        return True
