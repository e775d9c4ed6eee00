"""The clock of training, by which its speed is told."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Seconds of training since `start`, without those spent in `paused`."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Begin at 0."""
        self._zero = time.perf_counter()

    def seconds(self) -> float:
        """Seconds so far."""
        return time.perf_counter() - self._zero

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A context whose time does not count."""
        before = time.perf_counter()
        try:
            yield
        finally:
            self._zero += time.perf_counter() - before
