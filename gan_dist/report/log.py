"""Send log messages to the terminal and to a file in the run directory."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from tqdm import tqdm


def log_to(path: Path | None) -> None:
    """Set up the package's log.

    Args:
        path: the messages go to the terminal and to this file, where each has its time and level. None for no file, and
            only warnings and errors on the terminal. Warnings before the file was opened are written to it too.
    """
    log = logging.getLogger("gan_dist")
    logging.raiseExceptions = False  # print no traceback when a line cannot be logged, for example on a full disk
    terminals = [handler for handler in log.handlers if isinstance(handler, TerminalHandler)]
    early = [record for terminal in terminals for record in terminal.early or ()]
    log.handlers = [TerminalHandler(None if path else early)]
    log.setLevel(logging.INFO if path else logging.WARNING)
    if path:
        file = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(file)
        for record in early:
            file.handle(record)


class TerminalHandler(logging.Handler):
    """Prints messages on the terminal. `tqdm.write` puts them above the progress bar without damaging it.

    Attributes:
        early: the first messages, at most 100. A run's log file is opened after its first warnings; None afterwards.
    """

    def __init__(self, early: list[logging.LogRecord] | None) -> None:
        super().__init__()
        self.early = early

    def emit(self, record: logging.LogRecord) -> None:
        if self.early is not None and len(self.early) < 100:
            self.early.append(record)
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        tqdm.write(prefix + record.getMessage(), file=sys.stdout)
