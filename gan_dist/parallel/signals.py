"""Signals that ask for a stop."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
import time
from types import FrameType
from typing import Any

SAME = 1.0  # seconds in which a signal's repetition is the same signal


class StopSignals:
    """While it is entered, the first SIGINT, SIGTERM or SIGUSR1 asks for a stop; a later SIGINT ends the program.

    A launcher passes on what the terminal has sent to its processes already: a repetition within a second is the same
    signal. Schedulers repeat SIGTERM while a checkpoint is being written, and have SIGKILL when they mean it.
    """

    NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        self._numbers, self._wakeup = socket.socketpair()
        self._wakeup.setblocking(False)
        self._wakeup_before = signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, name="signals", daemon=True).start()
        for number in self.NUMBERS:
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        self._wakeup.close()  # which ends the thread

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number)

    def _watch(self) -> None:
        """Gets each signal's number at once, when `_receive` has to wait for the main thread to leave a collective."""
        first = None
        while number := self._numbers.recv(1):
            if number[0] not in self.NUMBERS:
                continue
            first = first or time.monotonic()
            if number[0] == signal.SIGINT and time.monotonic() - first > SAME:
                os.write(2, b"gan-dist: interrupted\n")
                for worker in multiprocessing.active_children():  # they would keep the run's lock
                    worker.kill()
                os._exit(130)


os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # a data worker's signals are its own
