"""Send log messages to the terminal and to a file in the run directory."""

from __future__ import annotations

import io
import logging
import os
import sys
from pathlib import Path

from tqdm import tqdm

from gan_dist.files import open_to_append


def log_to(path: Path | None) -> None:
    """Set up the package's log.

    Args:
        path: the messages go to the terminal and to this file, where each has its time and level. None for no file, and
            only warnings and errors on the terminal. Earlier warnings are then written to the file too.
    """
    log = logging.getLogger("gan_dist")
    logging.raiseExceptions = False  # print no traceback when a line cannot be logged, for example on a full disk
    early = [record for handler in log.handlers if isinstance(handler, TerminalHandler) for record in handler.early]
    log.handlers = [TerminalHandler()]
    log.setLevel(logging.INFO if path else logging.WARNING)
    if path:
        file = LogFile(path)
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(file)
        for record in early:
            file.handle(record)


class LogFile(logging.FileHandler):
    """Adds messages to a file. If a backup by hard links shares the file, it is copied before it is changed."""

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


class TerminalHandler(logging.Handler):
    """Prints messages on the terminal. `tqdm.write` puts them above the progress bar without damaging it.

    Attributes:
        early: the first messages, at most 100. A run's log file is opened after its first warnings.
    """

    def __init__(self) -> None:
        super().__init__()
        self.early: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.early += [record][: 100 - len(self.early)]
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        tqdm.write(prefix + record.getMessage(), file=sys.stdout)
