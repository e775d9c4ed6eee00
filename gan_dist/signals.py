"""Signals that ask for a stop."""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import Any


class StopSignals:
    """While it is entered, the first SIGINT, SIGTERM or SIGUSR1 asks for a stop; a later SIGINT ends the program.

    A launcher passes on what the terminal has sent to its processes already: a repetition within a second is the same
    signal. Schedulers repeat SIGTERM while a checkpoint is being written, and have SIGKILL when they mean it.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._at = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self.received is None:
            self.received, self._at = signal.Signals(number), time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._at > 1:
            raise KeyboardInterrupt
