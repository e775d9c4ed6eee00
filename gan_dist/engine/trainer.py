"""The training loop: makes iterations, and calls the callbacks that are due after so many images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from gan_dist.checkpoint.state import State
from gan_dist.engine.batches import Batches
from gan_dist.engine.callbacks.save import SaveCheckpoint
from gan_dist.engine.clock import Clock
from gan_dist.engine.recovery import Recovery
from gan_dist.engine.step import Alternation
from gan_dist.errors import UserError


class Callback(Protocol):
    """Something that is called regularly during training.

    Attributes:
        every_nimg: number of images between two calls; 0 for never.
        at_start: call it also before the first iteration of a new run.
        at_end: call it also when training is finished.
    """

    every_nimg: int
    at_start: bool
    at_end: bool

    def __call__(self, state: State) -> None: ...


class Trainer:
    """Trains until D has seen `total_nimg` real images, or until a stop is requested.

    Args:
        state: the state of the run.
        step: makes one iteration.
        batches: this process's shares of the global batches.
        callbacks: called in this order.
        save: writes the last checkpoint when training is finished or stopped.
        recovery: looks at the gradient norms after each iteration.
        clock: is started with the loop. Callbacks that take long pause it.
        total_nimg: length of the run in images.
    """

    def __init__(
        self,
        state: State,
        step: Alternation,
        batches: Batches,
        callbacks: Sequence[Callback],
        save: SaveCheckpoint,
        recovery: Recovery,
        clock: Clock,
        total_nimg: int,
    ) -> None:
        self.state, self.step, self.batches = state, step, batches
        self.callbacks, self.save, self.recovery = callbacks, save, recovery
        self.clock, self.total_nimg = clock, total_nimg

    def run(self, stop: Callable[[], bool]) -> bool:
        """Train; returns True if training is finished, False if it was stopped.

        Args:
            stop: called before each iteration; returns True to stop. All processes must get the same answer.

        Raises:
            UserError: gradients are not finite, and the run must not go back; or the last checkpoint cannot be written.
        """
        state = self.state
        self.clock.start()
        if state.nimg == 0:
            self._call([c for c in self.callbacks if c.every_nimg and c.at_start])
        called: list[Callback] = []
        while True:
            ended = state.nimg >= self.total_nimg or stop()
            if not ended:
                before = state.nimg
                norms = self.step(self.batches)
            if self.recovery.after_last() if ended else self.recovery.after_iteration(*norms):
                continue
            if ended:
                break
            called = [c for c in self.callbacks if c.every_nimg and state.nimg // c.every_nimg > before // c.every_nimg]
            self._call(called)
        self.batches.close()
        finished = state.nimg >= self.total_nimg
        if finished:
            self._call([c for c in self.callbacks if c.every_nimg and c.at_end and c not in called])
        if (self.save.every_nimg or not finished) and not self.save.now(state):
            raise UserError(f"the last checkpoint, of {state.nimg / 1000:.1f} kimg, could not be written: see the log")
        return finished

    def _call(self, callbacks: Sequence[Callback]) -> None:
        for callback in callbacks:
            callback(self.state)
