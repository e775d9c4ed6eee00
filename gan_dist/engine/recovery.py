"""What a run does when its gradients are not finite."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

from torch import Tensor

from gan_dist.checkpoint.find import find_checkpoint
from gan_dist.checkpoint.restore import restore
from gan_dist.checkpoint.state import State
from gan_dist.checkpoint.write import set_aside
from gan_dist.engine.callbacks.save import SaveCheckpoint
from gan_dist.engine.health import Health
from gan_dist.errors import UserError
from gan_dist.parallel.distributed import Distributed

log = logging.getLogger(__name__)


class Rewindable(Protocol):
    """Something that has to know that the run went back."""

    def rewind(self, nimg: int) -> None:
        """The run is where it was after `nimg` images."""


class Recovery:
    """Goes back to the last checkpoint, to go on with other data, or ends the run.

    Args:
        health: notices gradients that are not finite.
        save: writes the run's checkpoints.
        rewindable: what is told that the run went back.
        policy: `train.on_nonfinite`; "skip" goes on until there are too many steps to skip in a row.
        max_rollbacks: how often the run may go back.
    """

    def __init__(
        self,
        state: State,
        health: Health,
        save: SaveCheckpoint,
        rewindable: Sequence[Rewindable],
        dist: Distributed,
        policy: Literal["rollback", "skip", "stop"],
        max_rollbacks: int,
    ) -> None:
        self.state, self.health, self.save, self.rewindable = state, health, save, rewindable
        self.dist, self.policy, self.max_rollbacks = dist, policy, max_rollbacks

    def after_iteration(self, norm_D: Tensor, norm_G: Tensor) -> bool:
        """Look at the norms of both gradients; returns True if the run went back.

        Raises:
            UserError: gradients are not finite, and the run must not go back.
        """
        return self._go_back(self.health(self.state.nimg, norm_D, norm_G))

    def after_last(self) -> bool:
        """The same for the iterations whose norms have not been looked at, when no other iteration follows."""
        return self._go_back(self.health.remaining())

    def _go_back(self, event: str | None) -> bool:
        if event is None:
            return False
        if self.dist.is_main:
            log.warning("%s", event)
        state, retries = self.state, self.state.retries + 1
        if self.policy != "rollback" or retries > self.max_rollbacks:
            raise self._failure(event)
        self.save.rewind(state.nimg)  # waits until the newest checkpoint is on disk
        restore(self.dist.from_main(self._newest), state)
        state.retries = retries
        for part in (*self.rewindable, self.health):
            part.rewind(state.nimg)
        if self.dist.is_main:
            count = f"{retries} of {self.max_rollbacks}"
            log.warning("went back to %.1f kimg, to go on with other data (%s)", state.nimg / 1000, count)
        return True

    def _newest(self) -> Path:
        checkpoint = find_checkpoint(self.save.run_dir)
        set_aside(checkpoint)
        return checkpoint

    def _failure(self, event: str) -> UserError:
        advice = "" if self.policy == "rollback" else ", or set train.on_nonfinite=rollback"
        where = f"the last good checkpoint is in {self.save.run_dir}/checkpoints"
        error = UserError(f"{event}; lower the learning rates{advice}; {where}")
        error.everywhere = True  # the gradients are the same in all processes
        return error
