"""How all processes agree on the iteration in which they stop."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from gan_dist.parallel.distributed import Distributed
from gan_dist.parallel.late_reads import read_later
from gan_dist.parallel.signals import StopSignals

STOP_LAG = 4  # iterations between asking the others to stop and stopping, so that nobody waits for the answer


class StopAgreement:
    """Asked once per iteration: stop now? All processes get the same answer in the same iteration.

    Each asks the others by an all-reduce of its own flag and reads the answer STOP_LAG iterations later, when it has
    long arrived: neither the host nor the device waits.
    """

    def __init__(self, dist: Distributed, signals: StopSignals) -> None:
        self._dist, self._signals = dist, signals
        self._answers: deque[Callable[[], Tensor]] = deque()

    def __call__(self) -> bool:
        received = self._signals.received is not None
        if not self._dist.several:
            return received
        flag = torch.full((1,), float(received), device=self._dist.device)
        work = torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX, async_op=True)
        self._answers.append(read_later(flag, work))
        return len(self._answers) > STOP_LAG and self._answers.popleft()().item() > 0
