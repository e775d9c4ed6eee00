"""Wait for batches that are read from files: say so, stop for a signal, and end only when none can come any more."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass

from gan_dist.data.folder import ImageFiles
from gan_dist.data.gone import DataGoneError, any_present
from gan_dist.data.workers import Workers
from gan_dist.errors import Interrupted, UserError

log = logging.getLogger(__name__)

# These are numbers of looks, not seconds: when a job is suspended, its clocks jump although nothing has happened.
LOOK = 1.0  # seconds between two looks at the workers, or at a folder that is gone
SAID = 60  # a wait is said each time after so many looks
IDLE = 60  # a batch is lost if all workers were idle at so many looks in a row
RETRIES = 300  # so often a folder that is gone is looked for


def _log(_: str, message: str) -> None:
    log.warning("%s", message)


@dataclass(frozen=True)
class Patience:
    """What to do while there is no batch.

    Attributes:
        stopped: returns True if this process has received a stop signal.
        say: called with a key and a message. If several processes wait for the same thing, their keys are equal.
    """

    stopped: Callable[[], bool] = lambda: False
    say: Callable[[str, str], None] = _log

    def wait_for(self, batch: Future, workers: Workers, number: int) -> None:
        """Wait until a batch is there, or until reading it has failed.

        Args:
            batch: the batch that the workers are to read.
            workers: the workers.
            number: number, in the run, of the batch's first image.

        Raises:
            Interrupted: a stop signal has arrived.
            UserError: the workers have nothing to do, so the batch is lost.
        """
        looks = idle = 0
        while not wait([batch], LOOK).done:
            looks += 1
            idle = 0 if workers.pending else idle + 1
            if self.stopped():
                raise Interrupted
            if idle >= IDLE:
                raise UserError(
                    f"the data workers are idle, but their batch of image {number} did not arrive; resume the run, "
                    "with a lower data.workers if memory was short"
                )
            if looks % SAID == 0:
                self.say(
                    f"wait {number} {looks}",
                    f"waiting for a batch of images for {looks // SAID} min; {workers.count} data workers have "
                    f"{workers.pending} batches to read, so the storage may be slow; SIGTERM ends the run with a "
                    "checkpoint",
                )

    def wait_for_folder(self, files: ImageFiles, gone: DataGoneError, number: int) -> None:
        """Wait until the files of a data set are there again.

        Args:
            files: the data set.
            gone: the error that says what is missing.
            number: number, in the run, of the first image that is missing.

        Raises:
            Interrupted: a stop signal has arrived.
            DataGoneError: the files did not come back.
        """
        self.say(f"gone {number}", f"{gone}; the run waits {RETRIES * LOOK / 60:.0f} min for them to come back")
        for _ in range(RETRIES):
            time.sleep(LOOK)
            if self.stopped():
                raise Interrupted
            if any_present(files.probes()):
                return
        raise gone


PATIENT = Patience()  # ends no wait for a signal, and logs in every process
