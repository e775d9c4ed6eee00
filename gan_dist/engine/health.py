"""Notices gradients that are not finite, without making the host wait for the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import islice

import torch
from torch import Tensor

from gan_dist.parallel.late_reads import read_later

LAG = 4  # iterations between an event and its notice
MEMORY = 8  # iterations whose norms are kept, to be told with the event


class Health:
    """Takes both networks' gradient norms in each iteration, the same in all processes; tells when they are sick.

    Args:
        patience: non-finite iterations in a row that are an event: more than one where single steps are skipped.
        warn: called with what happened at the first of them already.
    """

    def __init__(self, patience: int, warn: Callable[[str], None] | None = None) -> None:
        self.patience, self.warn = patience, warn
        self._under_way: deque[tuple[int, Callable[[], Tensor]]] = deque()
        self._seen: deque[tuple[int, float, float]] = deque(maxlen=MEMORY + patience)

    def __call__(self, nimg: int, norm_D: Tensor, norm_G: Tensor) -> str | None:
        """What happened, if it did, with the norms before it."""
        self._under_way.append((nimg, read_later(torch.stack([norm_D, norm_G]).detach())))
        return self._look() if len(self._under_way) > LAG else None

    def remaining(self) -> str | None:
        """Likewise for the last iterations, when no other follows."""
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
        """In words, that the last so many iterations are sick."""
        before = [f"{d:.3g}/{g:.3g}" for _, d, g in islice(self._seen, len(self._seen) - length)]
        first = self._seen[-length][0]
        return (
            f"gradients are not finite at {first / 1000:.1f} kimg; norms of D/G in the iterations before: "
            f"{', '.join(before[-4:]) or 'none'}"
        )

    def rewind(self, nimg: int) -> None:
        """The run went back: forget what was seen."""
        self._under_way.clear()
        self._seen.clear()


def _is_finite(x: float) -> bool:
    return x - x == 0
