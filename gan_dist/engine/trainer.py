"""The training loop: iterations, and what is due after how many images."""

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
    """Something that happens every `every_nimg` images (0: never), and at the run's start and end if it says so."""

    every_nimg: int
    at_start: bool
    at_end: bool

    def __call__(self, state: State) -> None: ...


class Trainer:
    """Trains until `total_nimg` images are seen or a stop is asked for.

    Args:
        step: takes one iteration.
        batches: what the iterations train on.
        callbacks: called in this order.
        save: called when training ends, early or not.
        recovery: looks at the gradients after each iteration.
        clock: started with the loop; callbacks that take long pause it.
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
        """Returns True if training is finished, False if `stop`, asked before each iteration, said so.

        Raises:
            UserError: gradients are not finite, and the run must not go back; or the last checkpoint can't be written.
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
