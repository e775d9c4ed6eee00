"""The training loop: makes iterations, and calls the callbacks that are due after so many images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from gan_dist.checkpoint.state import State
from gan_dist.engine.batches import Batches
from gan_dist.engine.callbacks.evaluate import Evaluate
from gan_dist.engine.callbacks.save import SaveCheckpoint
from gan_dist.engine.clock import Clock
from gan_dist.engine.recovery import Recovery
from gan_dist.engine.step import Alternation
from gan_dist.errors import Interrupted, UserError
from gan_dist.parallel.stop import StopAgreement


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
        self._interrupted = False  # a callback was broken off by a stop signal
        self._changing = False  # if this is False, the state is between two iterations, and may be saved

    def run(self, stop: StopAgreement) -> bool:
        """Train; returns True if training is finished, False if it was stopped.

        The last checkpoint is also written if training fails while the state is between two iterations, for example
        because there are no data any more.

        Args:
            stop: tells whether to stop; it is asked before each iteration.

        Raises:
            UserError: gradients are not finite, and the run must not go back; or the last checkpoint cannot be written.
            Exception: the batches end, or a callback fails.
        """
        try:
            self._train(stop)
            return self._end()
        except Exception:
            if not self._changing:
                self.save.now(self.state)
            raise
        finally:
            self.batches.close()

    def _end(self) -> bool:
        """Write the last checkpoint; returns True if training is finished.

        Raises:
            UserError: the checkpoint cannot be written.
            Exception: the batches have ended.
        """
        state = self.state
        finished = state.nimg >= self.total_nimg and not self._interrupted
        needed = self.save.every_nimg or not finished
        self._changing = True  # a checkpoint that cannot be written is not tried again
        if needed and not self.save.dist.from_main(lambda: self.save.now(state)):
            kimg = f"{state.nimg / 1000:.1f} kimg"
            error = UserError(f"the last checkpoint, of {kimg}, could not be written: see the log")
            error.everywhere = True
            raise self.batches.error or error
        if self.batches.error:
            raise self.batches.error
        return finished

    def _train(self, stop: StopAgreement) -> None:
        """Make iterations until training is finished or must stop; call the callbacks that are due."""
        state, callbacks = self.state, [c for c in self.callbacks if c.every_nimg]
        self.clock.start()
        if state.nimg == 0:
            self._call([c for c in callbacks if c.at_start])
        elif self.save.unmeasured and state.nimg < self.total_nimg:
            self._call([c for c in callbacks if isinstance(c, Evaluate)])
        due: list[Callback] = []
        while True:
            ended = self._interrupted or state.nimg >= self.total_nimg or not self.batches.ready(stop)
            self._changing = True
            if not ended:
                before = state.nimg
                norms = self.step(self.batches)
            went_back = self.recovery.after_last() if ended else self.recovery.after_iteration(*norms)
            self._changing = False
            if ended and not went_back:
                break
            if not went_back:
                due = [c for c in callbacks if state.nimg // c.every_nimg > before // c.every_nimg]
                self._call(due)
        if state.nimg >= self.total_nimg and not self._interrupted:
            self._call([c for c in callbacks if c.at_end and c not in due])

    def _call(self, callbacks: Sequence[Callback]) -> None:
        for callback in callbacks:
            try:
                callback(self.state)
            except Interrupted:
                self._interrupted = True
                return
