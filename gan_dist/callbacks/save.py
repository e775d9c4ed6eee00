"""Checkpoints during training."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from gan_dist.checkpoint import save_checkpoint
from gan_dist.distributed import Distributed
from gan_dist.state import State
from gan_dist.stats import Clock

log = logging.getLogger(__name__)


class SaveCheckpoint:
    """Writes a checkpoint; one that fails is reported and tried again when the next is due."""

    at_start = False
    at_end = True

    def __init__(
        self, every_nimg: int, run_dir: Path, facts: dict[str, Any], keep: int, clock: Clock, dist: Distributed
    ) -> None:
        self.every_nimg, self.run_dir, self.facts, self.keep = every_nimg, run_dir, facts, keep
        self.clock, self.dist = clock, dist

    def __call__(self, state: State) -> None:
        if not self.dist.is_main:
            return
        try:
            with self.clock.paused():
                save_checkpoint(self.run_dir, state, self.facts, self.keep)
        except OSError as error:
            log.error("could not write a checkpoint at %.1f kimg: %s", state.nimg / 1000, error)
