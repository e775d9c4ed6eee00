"""Where messages go: the terminal, and a file in the run directory."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from tqdm import tqdm


def log_to(path: Path | None) -> None:
    """Send the package's messages to the terminal, and to a file with the time of each; None: warnings alone."""
    log = logging.getLogger("gan_dist")
    logging.raiseExceptions = False  # when the disk is full, a lost line of the log is not worth a traceback
    log.handlers = [TerminalHandler()]
    log.setLevel(logging.INFO if path else logging.WARNING)
    if path:
        file = logging.FileHandler(path)
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(file)


class TerminalHandler(logging.Handler):
    """Prints above the progress line, which tqdm keeps whole."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        tqdm.write(prefix + record.getMessage(), file=sys.stdout)
