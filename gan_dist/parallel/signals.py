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
from typing import Any, Self

from gan_dist.advice import advise

log = logging.getLogger(__name__)

SAME = 1.0  # a SIGINT that comes at most so many seconds after the first signal is a copy of that signal


class StopRequest:
    """A context in which the first SIGINT, SIGTERM, SIGUSR1 or SIGHUP requests a stop, as `stop` does from any thread.

    A later SIGINT raises KeyboardInterrupt. Python lets only the main thread handle signals, so in another thread
    `stop` is the only way to request a stop. At its end the context puts the handlers back that were there.

    After Ctrl-C a process gets SIGINT twice: from the terminal, and from its launcher, which passes it on. So a SIGINT
    within a second of the first signal is ignored. Later SIGTERMs are ignored too, because a scheduler may repeat
    SIGTERM while the run writes its last checkpoint; to end the program at once the scheduler sends SIGKILL. SIGHUP
    stays ignored if it was ignored when the program started, which is what `nohup` does.

    If a launcher has started this process and then ends, that counts as a SIGTERM: nobody could stop the run otherwise.

    Attributes:
        NUMBERS: the signals that this system has.
    """

    NUMBERS = tuple(
        getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name)
    )

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._first = 0.0  # when the first signal arrived
        self._before: dict[signal.Signals, Any] = {}
        self._launcher = os.getppid() if _is_launched() else None

    @property
    def received(self) -> signal.Signals | None:
        """The first signal that has arrived; None as long as there is none. The training loop reads it."""
        if self._received is None and self._launcher is not None and os.getppid() != self._launcher:
            self.stop()
            if os.environ.get("RANK", "0") == "0":
                log.warning(
                    "the launcher (process %d) has ended, so this run saves a checkpoint and stops", self._launcher
                )
        return self._received

    def stop(self) -> None:
        """Request a stop, as SIGTERM does."""
        self._received = self._received or signal.SIGTERM

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in self.NUMBERS:
                before = signal.getsignal(number)
                # A handler that was not set from Python is None here, and could not be put back.
                if before is not None and (number.name != "SIGHUP" or before != signal.SIG_IGN):
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self._received is None:
            self._received, self._first = signal.Signals(number), time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._first > SAME:
            raise KeyboardInterrupt


class StopSignals(StopRequest):
    """A `StopRequest` for the command line: a later SIGINT ends the program at once, even if it hangs in a library.

    Attributes:
        watching: one of these contexts is active.

    Raises:
        UserError: no thread can be started.
    """

    watching = False

    def __enter__(self) -> Self:
        self._numbers, self._wakeup = socket.socketpair()
        self._wakeup.setblocking(False)
        try:
            threading.Thread(target=self._watch, name="signals", daemon=True).start()
        except RuntimeError as error:
            raise advise(error) from None
        self._wakeup_before = signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        StopSignals.watching = True
        return super().__enter__()

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        signal.set_wakeup_fd(self._wakeup_before)
        StopSignals.watching = False
        self._wakeup.close()  # this ends the thread

    def _receive(self, number: int, _: FrameType | None) -> None:
        self._received = self._received or signal.Signals(number)

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


def _leave_to_parent() -> None:
    """Keep the signals of a DataLoader worker, which is forked from this process, from reaching this process's thread.

    A file descriptor of another owner, such as a notebook's event loop, stays.
    """
    if StopSignals.watching:
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_leave_to_parent)
