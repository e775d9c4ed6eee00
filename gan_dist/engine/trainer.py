"""The training loop: batches in, iterations, the average of G, and what is due when."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Protocol

from torch import Tensor

from gan_dist.checkpoint.state import State
from gan_dist.engine.callbacks.save import SaveCheckpoint
from gan_dist.engine.ema import ema_beta, update_ema
from gan_dist.engine.health import Health
from gan_dist.engine.stats import Clock
from gan_dist.engine.step import Alternation
from gan_dist.errors import UserError
from gan_dist.parallel.distributed import StopAgreement
from gan_dist.parallel.signals import StopSignals

Batches = Generator[tuple[Tensor, Tensor]]  # closed, it ends its data workers


class Callback(Protocol):
    """Something that happens every `every_nimg` images (0: never), and at the run's start and end if it says so."""

    every_nimg: int
    at_start: bool
    at_end: bool

    def __call__(self, state: State) -> None: ...


class Trainer:
    """Trains until `total_nimg` images are seen or a signal asks for a stop.

    Args:
        batches: this process's shares of the global batches, from image number `state.nimg` on, without end.
        callbacks: in the order in which they are to run.
        save: called when training ends, early or not.
        health: what watches the gradients.
        recover: called with what `health` has found: raises, or puts the state back and returns new batches.
        clock: started with the loop; callbacks that take time pause it.
        ema_half_life, ema_rampup, ema_growth: see `gan_dist.ema.ema_beta`; half-life and growth are in images.
    """

    def __init__(
        self,
        state: State,
        step: Alternation,
        batches: Batches,
        callbacks: Sequence[Callback],
        save: SaveCheckpoint,
        health: Health,
        recover: Callable[[str], Batches],
        clock: Clock,
        *,
        total_nimg: int,
        ema_half_life: float,
        ema_rampup: float,
        ema_growth: float,
    ) -> None:
        self.state, self.step, self.batches = state, step, batches
        self.callbacks, self.save, self.clock = callbacks, save, clock
        self.health, self.recover = health, recover
        self.total_nimg = total_nimg
        self.ema = (ema_half_life, ema_rampup, ema_growth)

    def run(self, signals: StopSignals) -> bool:
        """Returns True if training is finished, False if it was stopped by a signal."""
        state = self.state
        self.clock.start()
        stop = StopAgreement(self.step.dist, signals)
        if state.nimg == 0:
            self._fire([c for c in self.callbacks if c.every_nimg and c.at_start])
        fired: list[Callback] = []
        while True:
            ended = state.nimg >= self.total_nimg or stop()
            if not ended:
                before = state.nimg
                norms = self.step(self.batches)
                beta = ema_beta(state.nimg - before, before, *self.ema)
                update_ema(state.G_ema, state.G, beta)
            if event := self.health.rest() if ended else self.health(state.nimg, *norms):
                self.batches.close()
                self.batches = self.recover(event)
                self.health.reset()
                continue
            if ended:
                break
            fired = [c for c in self.callbacks if c.every_nimg and state.nimg // c.every_nimg > before // c.every_nimg]
            self._fire(fired)
        self.batches.close()
        finished = state.nimg >= self.total_nimg
        if finished:
            self._fire([c for c in self.callbacks if c.every_nimg and c.at_end and c not in fired])
        if (self.save.every_nimg or not finished) and not self.save.now(state):
            raise UserError(f"the last checkpoint, of {state.nimg / 1000:.1f} kimg, could not be written: see the log")
        return finished

    def _fire(self, callbacks: Sequence[Callback]) -> None:
        for callback in callbacks:
            callback(self.state)
