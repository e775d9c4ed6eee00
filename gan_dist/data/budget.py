"""A limit for the memory that several threads use together."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Budget:
    """A number of bytes that threads share. A thread waits until enough of them are free; first come, first served.

    Args:
        size: number of bytes.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._free = size
        self._turn = threading.Lock()  # held by the thread that waits, so that a large request is not overtaken
        self._changed = threading.Condition()

    @contextmanager
    def of(self, amount: int) -> Iterator[None]:
        """A context that has `amount` bytes of the budget; all of it if the amount is larger than the budget."""
        amount = min(amount, self.size)
        with self._turn, self._changed:
            self._changed.wait_for(lambda: self._free >= amount)
            self._free -= amount
        try:
            yield
        finally:
            with self._changed:
                self._free += amount
                self._changed.notify_all()
