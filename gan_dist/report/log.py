"""Send log messages to the terminal and to a file in the run directory. Neither may stop the training if it fails."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tqdm import tqdm

from gan_dist.errors import escaped
from gan_dist.files import open_to_append

# `log.info(…, extra=FILE_ONLY)` writes a message that the terminal shows in another way, for example in a progress bar.
FILE_ONLY = {"file_only": True}

log = logging.getLogger("gan_dist")


def in_kimg(nimg: int) -> str:
    """Return a number of images in thousands: with one decimal, or, below a thousand, with all of them."""
    return f"{nimg / 1000:.1f}" if nimg >= 1000 or nimg % 100 == 0 else f"{nimg / 1000:.3f}"


def log_to(path: Path | None) -> None:
    """Set up the package's log. Handlers of the user's own stay.

    Args:
        path: the messages go to the terminal and to this file, where each has its time and level. None for no file, and
            only warnings and errors on the terminal. Earlier warnings are then written to the file too.
    """
    early = [record for handler in log.handlers if isinstance(handler, TerminalHandler) for record in handler.early]
    terminal = TerminalHandler()
    for handler in log.handlers[:]:
        if isinstance(handler, TerminalHandler | LogFile):
            log.removeHandler(handler)
            handler.close()
    log.addHandler(terminal)
    log.setLevel(logging.INFO if path else logging.WARNING)
    if path:
        file = LogFile(path)
        # With one lock for both, two threads cannot wait for each other when each handler reports its failure by a
        # message to the other one.
        file.lock = terminal.lock
        log.addHandler(file)
        for record in early:
            file.handle(record)


@contextmanager
def log_as_before() -> Iterator[None]:
    """A context after which the package's log has its handlers and its level from before; the others are closed."""
    handlers, level = log.handlers[:], log.level
    try:
        yield
    finally:
        for handler in set(log.handlers) - set(handlers):
            handler.close()
        log.handlers = handlers
        log.setLevel(level)


class LogFile(logging.FileHandler):
    """Appends messages to a file. If the file cannot be written, for example on a full disk, this is said once.

    If a backup by hard links shares the file, it is copied before it is changed.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8")
        self._path, self._failed = path, False

    def _open(self) -> io.TextIOWrapper:
        return io.TextIOWrapper(open_to_append(Path(self.baseFilename)), encoding="utf-8")

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if self.stream and os.fstat(self.stream.fileno()).st_nlink > 1:
                self.stream.close()
                self.stream = None  # `emit` then opens it anew
            super().emit(record)
        except OSError:
            self.handleError(record)

    def format(self, record: logging.LogRecord) -> str:
        time = logging.Formatter().formatTime(record)
        return f"{time} {record.levelname} {escaped(record.getMessage())}"

    def handleError(self, record: logging.LogRecord) -> None:
        if not self._failed:
            self._failed = True
            log.warning("%s cannot be written (%s); messages are missing in it", self._path, sys.exc_info()[1])

    def close(self) -> None:
        with suppress(OSError):
            super().close()


class TerminalHandler(logging.Handler):
    """Prints messages on standard output. `tqdm.write` puts them above the progress bar without damaging it.

    If standard output cannot be written, for example because its reader has ended, this is said once, and from then on
    warnings and errors go to standard error.

    Attributes:
        early: the first messages, at most 100. A run's log file is opened after its first warnings.
    """

    def __init__(self) -> None:
        super().__init__()
        self.early: list[logging.LogRecord] = []
        self._failed = False

    def emit(self, record: logging.LogRecord) -> None:
        self.early += [record][: 100 - len(self.early)]
        if getattr(record, "file_only", False):
            return
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        line = prefix + escaped(record.getMessage())
        try:
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()
        except (OSError, ValueError) as error:
            if not self._failed:
                self._failed = True
                log.warning("standard output cannot be written (%s); warnings now go to standard error", error)
            if record.levelno >= logging.WARNING:
                with suppress(OSError, ValueError):
                    print(line, file=sys.stderr, flush=True)
