"""Agree in all processes on the iteration in which they stop."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from gan_dist.parallel.distributed import Distributed
from gan_dist.parallel.late_reads import read_later
from gan_dist.parallel.signals import StopSignals

STOP_LAG = 4  # the result of an all-reduce is read so many iterations later, when it has certainly arrived


class StopAgreement:
    """A function that tells whether to stop. All processes call it once per iteration and get the same answer.

    Each call starts an all-reduce of a flag that says whether this process has received a signal, or has noticed that
    its launcher is gone. The result is read
    STOP_LAG iterations later, so that neither the host nor the device waits for it.

    Args:
        dist: the processes.
        signals: the signals that this process receives.
    """

    def __init__(self, dist: Distributed, signals: StopSignals) -> None:
        self._dist, self._signals = dist, signals
        self._answers: deque[Callable[[], Tensor]] = deque()

    def __call__(self) -> bool:
        received = self._signals.received is not None or self._dist.launcher_is_lost
        if not self._dist.several:
            return received
        flag = torch.full((1,), float(received), device=self._dist.device)
        work = torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX, async_op=True)
        self._answers.append(read_later(flag, work))
        return len(self._answers) > STOP_LAG and self._answers.popleft()().item() > 0
