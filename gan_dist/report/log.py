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
            only warnings and errors on the terminal.
    """
    log = logging.getLogger("gan_dist")
    logging.raiseExceptions = False  # print no traceback when a line cannot be logged, for example on a full disk
    log.handlers = [TerminalHandler()]
    log.setLevel(logging.INFO if path else logging.WARNING)
    if path:
        file = logging.FileHandler(path)
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(file)


class TerminalHandler(logging.Handler):
    """Prints messages on the terminal. `tqdm.write` puts them above the progress bar without damaging it."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        tqdm.write(prefix + record.getMessage(), file=sys.stdout)
