"""A clock that measures the time spent on training, from which the logged speed is computed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Measures the time since `start`, without the time spent in `paused`."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Set the clock to 0."""
        self._zero = time.perf_counter()

    def seconds(self) -> float:
        """Return the measured time in seconds."""
        return time.perf_counter() - self._zero

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A context during which the clock stands still, for example while the metrics are computed."""
        before = time.perf_counter()
        try:
            yield
        finally:
            self._zero += time.perf_counter() - before
