"""Handle gradients that are not finite: go back to the last checkpoint, or end the run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

from torch import Tensor

from gan_dist.checkpoint.find import find_checkpoint, list_checkpoints, read_facts
from gan_dist.checkpoint.restore import restore
from gan_dist.checkpoint.state import State
from gan_dist.checkpoint.write import set_aside
from gan_dist.engine.callbacks.save import SaveCheckpoint
from gan_dist.engine.health import Health
from gan_dist.errors import UserError
from gan_dist.parallel.distributed import Distributed

log = logging.getLogger(__name__)


class Rewindable(Protocol):
    """Something that must be told when the run goes back to a checkpoint."""

    def rewind(self, nimg: int) -> None:
        """The run has gone back to the checkpoint at `nimg` images."""


class Recovery:
    """Goes back to the last checkpoint and goes on with other data, or ends the run, if gradients are not finite.

    Args:
        state: the state of the run.
        health: detects gradients that are not finite.
        save: writes the run's checkpoints.
        rewindable: objects that are told when the run goes back.
        dist: the processes.
        policy: `train.on_nonfinite`. With "skip" single steps are skipped, and the run ends if `health` reports too
            many of them in a row.
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
        """Look at the gradient norms of D and G after an iteration; returns True if the run has gone back.

        Raises:
            UserError: the gradients are not finite, and `policy` or `max_rollbacks` does not allow to go back.
        """
        return self._go_back(self.health(self.state.nimg, norm_D, norm_G))

    def after_last(self) -> bool:
        """Look at the norms of the last iterations, which `after_iteration` has not looked at yet.

        Call this function when no further iteration follows. Returns and raises as `after_iteration`.
        """
        return self._go_back(self.health.remaining())

    def _go_back(self, event: str | None) -> bool:
        if event is None:
            return False
        if self.dist.is_main:
            log.warning("%s", event)
        state, retries = self.state, self.state.retries + 1
        self.save.rewind(state.nimg)  # this waits until the newest checkpoint is on disk
        if self.policy != "rollback" or retries > self.max_rollbacks:
            raise self._failure(event)
        checkpoint = self.dist.from_main(self._newest)
        if checkpoint is None:
            raise self._failure(event)
        restore(checkpoint, state, self.save.facts["protocol"])
        self.save.facts["callbacks"] = read_facts(checkpoint)["callbacks"]
        state.retries = retries
        for part in (*self.rewindable, self.health):
            part.rewind(state.nimg)
        if self.dist.is_main:
            count = f"{retries} of {self.max_rollbacks}"
            log.warning("went back to %.1f kimg, to go on with other data (%s)", state.nimg / 1000, count)
        return True

    def _newest(self) -> Path | None:
        """Return the newest undamaged checkpoint, after setting newer ones aside; None if nothing was saved yet."""
        if not list_checkpoints(self.save.run_dir):
            return None
        checkpoint = find_checkpoint(self.save.run_dir)
        set_aside(checkpoint)
        return checkpoint

    def _failure(self, event: str) -> UserError:
        advice = "" if self.policy == "rollback" else ", or set train.on_nonfinite=rollback"
        saved = self.dist.from_main(lambda: bool(list_checkpoints(self.save.run_dir)))
        folder = self.save.run_dir / "checkpoints"
        where = f"the last good checkpoint is in {folder}" if saved else "no checkpoint was written before this"
        error = UserError(f"{event}; lower the learning rates{advice}; {where}")
        error.everywhere = True  # the gradients are the same in all processes
        return error
