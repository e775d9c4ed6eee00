"""Detect gradients that are not finite, without making the host wait for the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import islice

import torch
from torch import Tensor

from gan_dist.parallel.late_reads import read_later

LAG = 4  # the norms of an iteration are read so many iterations later
MEMORY = 8  # number of earlier iterations whose norms are kept; the message shows the last 4 of them


class Health:
    """Takes the gradient norms of D and G after each iteration, and reports when they are not finite.

    The norms are the same in all processes, so all processes report the same in the same iteration.

    Args:
        patience: report only after so many non-finite iterations in a row. It is larger than 1 if a run skips single
            steps.
        warn: called with a message at the first non-finite iteration in a row; None for no such call.
    """

    def __init__(self, patience: int, warn: Callable[[str], None] | None = None) -> None:
        self.patience, self.warn = patience, warn
        self._under_way: deque[tuple[int, Callable[[], Tensor]]] = deque()
        self._seen: deque[tuple[int, float, float]] = deque(maxlen=MEMORY + patience)

    def __call__(self, nimg: int, norm_D: Tensor, norm_G: Tensor) -> str | None:
        """Take the norms of an iteration, and look at the norms of the iteration LAG iterations before it.

        Args:
            nimg: number of images seen after the iteration.
            norm_D, norm_G: norms of the gradients, scalars on the device.

        Returns:
            A message that says where the gradients are not finite; None if there is nothing to report.
        """
        self._under_way.append((nimg, read_later(torch.stack([norm_D, norm_G]).detach())))
        return self._look() if len(self._under_way) > LAG else None

    def remaining(self) -> str | None:
        """Look at the norms of the last LAG iterations, when no further iteration follows; returns as `__call__`."""
        while self._under_way:
            if event := self._look():
                return event
        return None

    def _look(self) -> str | None:
        nimg, norms = self._under_way.popleft()
        self._seen.append((nimg, *norms().tolist()))
        sick = [not all(map(_is_finite, norms)) for _, *norms in self._seen]
        if self.warn and sick[-1] and not any(sick[-2:-1]):
            self.warn(self._event(1))
        return self._event(self.patience) if len(sick) >= self.patience and all(sick[-self.patience :]) else None

    def _event(self, length: int) -> str:
        """Return the message that the last `length` iterations have gradients that are not finite."""
        before = [f"{d:.3g}/{g:.3g}" for _, d, g in islice(self._seen, len(self._seen) - length)]
        first = self._seen[-length][0]
        return (
            f"gradients are not finite at {first / 1000:.1f} kimg; norms of D/G in the iterations before: "
            f"{', '.join(before[-4:]) or 'none'}"
        )

    def rewind(self, nimg: int) -> None:
        """The run has gone back to the checkpoint at `nimg` images: forget all norms."""
        self._under_way.clear()
        self._seen.clear()


def _is_finite(x: float) -> bool:
    return x - x == 0
