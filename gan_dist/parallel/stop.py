"""Agree in all processes on the iteration in which they stop."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from gan_dist.parallel.distributed import Distributed
from gan_dist.parallel.late_reads import read_later
from gan_dist.parallel.signals import StopRequest

STOP_LAG = 4  # the result of an all-reduce is read so many iterations later, when it has certainly arrived


class StopAgreement:
    """A function that tells whether to stop. All processes call it once per iteration and get the same answer.

    Each call starts an all-reduce of a flag that says whether this process wants to stop. The result is read STOP_LAG
    calls later, so that neither the host nor the device waits for it.

    Args:
        dist: the processes.
        signals: the signals that this process receives; None as long as no signal can stop the run.

    Attributes:
        signals: as in `Args`.
        lag: number of calls after which the answer to a call is returned; 0 for a single process.
    """

    def __init__(self, dist: Distributed, signals: StopRequest | None = None) -> None:
        self._dist, self.signals = dist, signals
        self.lag = STOP_LAG if dist.several else 0
        self._answers: deque[Callable[[], Tensor]] = deque()

    @property
    def requested(self) -> bool:
        """This process has received a stop signal, or has noticed that its launcher is gone."""
        return (self.signals is not None and self.signals.received is not None) or self._dist.launcher_is_lost

    def __call__(self, unable: bool = False) -> bool:
        """Tell if a process wanted to stop at the call that was `lag` calls ago.

        Args:
            unable: this process wants to stop, because it cannot go on; it also wants to stop after a signal.
        """
        if not self._dist.several:
            return unable or self.requested
        self._answers.append(self._ask(unable or self.requested))
        return len(self._answers) > self.lag and self._answers.popleft()().item() > 0

    def now(self) -> bool:
        """Tell if a process has received a stop signal. All processes call this function and wait for each other."""
        return self._ask(self.requested)().item() > 0 if self._dist.several else self.requested

    def _ask(self, wanted: bool) -> Callable[[], Tensor]:
        flag = torch.full((1,), float(wanted), device=self._dist.device)
        work = torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX, async_op=True)
        return read_later(flag, work)
