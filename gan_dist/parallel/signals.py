"""Signals that stop a run."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import threading
import time
from types import FrameType
from typing import Any

from gan_dist.advice import advise

log = logging.getLogger(__name__)

SAME = 1.0  # a SIGINT that comes at most so many seconds after the first signal is a copy of that signal


class StopSignals:
    """A context in which the first SIGINT, SIGTERM, SIGUSR1 or SIGHUP requests a stop; a later SIGINT ends the program.

    After Ctrl-C a process gets SIGINT twice: from the terminal, and from its launcher, which passes it on. So a SIGINT
    within a second of the first signal is ignored. Later SIGTERMs are ignored too, because a scheduler may repeat
    SIGTERM while the run writes its last checkpoint; to end the program at once the scheduler sends SIGKILL. SIGHUP
    stays ignored if it was ignored when the program started, which is what `nohup` does.

    If a launcher has started this process and then ends, that counts as a SIGTERM: nobody could stop the run otherwise.

    Attributes:
        NUMBERS: the signals that this system has.

    Raises:
        UserError: no thread can be started.
    """

    NUMBERS = tuple(
        getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name)
    )

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._launcher = os.getppid() if _is_launched() else None

    @property
    def received(self) -> signal.Signals | None:
        """The first signal that has arrived; None as long as there is none. The training loop reads it."""
        if self._received is None and self._launcher is not None and os.getppid() != self._launcher:
            self._received = signal.SIGTERM
            if os.environ.get("RANK", "0") == "0":
                log.warning(
                    "the launcher (process %d) has ended, so this run saves a checkpoint and stops", self._launcher
                )
        return self._received

    def __enter__(self) -> StopSignals:
        self._numbers, self._wakeup = socket.socketpair()
        self._wakeup.setblocking(False)
        try:
            threading.Thread(target=self._watch, name="signals", daemon=True).start()
        except RuntimeError as error:
            raise advise(error) from None
        self._wakeup_before = signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        for number in self.NUMBERS:
            if number.name != "SIGHUP" or signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        self._wakeup.close()  # this ends the thread

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self._received is None:
            self._received = signal.Signals(number)

    def _watch(self) -> None:
        """Read the number of each signal in a thread, at the moment when it arrives.

        Python calls `_receive` in the main thread only, which may wait in a collective for a long time.
        """
        first = None
        while number := self._numbers.recv(1):
            if number[0] not in self.NUMBERS:
                continue
            first = first or time.monotonic()
            if number[0] == signal.SIGINT and time.monotonic() - first > SAME:
                os.write(2, b"gan-dist: interrupted\n")
                for worker in multiprocessing.active_children():  # they hold the run's lock too
                    worker.kill()
                os._exit(130)


def _is_launched() -> bool:
    """Tell if torchrun or `accelerate launch` has started this process; they set these variables."""
    accelerate = {"ACCELERATE_MIXED_PRECISION", "ACCELERATE_DYNAMO_MODE"} <= os.environ.keys()
    return accelerate or "TORCHELASTIC_RUN_ID" in os.environ


# A DataLoader worker is forked from this process. Without this line its signals would reach this process's thread.
os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
