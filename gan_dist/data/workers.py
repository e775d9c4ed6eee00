"""The workers of a DataLoader: what they are doing, and how their batches reach this process."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import signal
import sys
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import RawArray, RawValue
from typing import Any

from torch.utils.data import Dataset, get_worker_info

from gan_dist.errors import UserError
from gan_dist.quiet import hide_warnings

SHARED = "/dev/shm"  # torch passes tensors between processes in files of this directory
PREFETCH = 2  # batches that each worker reads in advance; this is torch's default


class Flag:
    """The event by which a DataLoader tells its workers to end. It has no lock, unlike the event of multiprocessing.

    Workers look at it all the time. One that was killed while it held the event's lock would keep it for ever, and
    whoever sets the event or looks at it would wait for ever.
    """

    def __init__(self) -> None:
        self._value = RawValue("b", 0)

    def set(self) -> None:
        self._value.value = 1

    def is_set(self) -> bool:
        return bool(self._value.value)


class Workers:
    """The workers of one DataLoader. They count what they have done in memory that they share with this process.

    Args:
        count: number of workers.

    Attributes:
        count: as in `Args`.
        given: number of batches that the workers have been asked for. The sampler counts them.
    """

    def __init__(self, count: int) -> None:
        self.count, self.given = count, 0
        self._done = RawArray("q", max(1, count))
        self._processes: list[BaseProcess] = []

    def __getstate__(self) -> dict[str, Any]:
        """Return what a worker gets that is not a fork: all but the processes, which only their parent has."""
        return {**vars(self), "_processes": []}

    @property
    def pending(self) -> int:
        """Number of batches that the workers have been asked for and have not read yet. If it is 0, all are idle."""
        return self.given - sum(self._done)

    def context(self) -> BaseContext | None:
        """Return the context in which the DataLoader makes its workers, so that they are known; None for no workers."""
        if not self.count:
            return None
        context = copy.copy(multiprocessing.get_context(multiprocessing.get_start_method()))
        make = context.Process  # type: ignore[attr-defined]

        def known(*args: Any, **kwargs: Any) -> BaseProcess:
            self._processes.append(make(*args, **kwargs))
            return self._processes[-1]

        context.Process, context.Event = known, Flag  # type: ignore[attr-defined,assignment]
        return context

    @staticmethod
    def begin(_: int) -> None:
        """Called in a worker when it starts, with its number.

        A worker prints no tracebacks. Its errors are raised in the main process anyway, and if that has ended, the
        worker's helper threads would print errors. A worker that is not a fork has warning filters of its own.
        """
        hide_warnings()
        sys.excepthook = lambda *_: None

    def pass_on(self, batch: Any) -> Any:
        """Put a worker's batch into shared memory; without room there, return it as arrays, which go through a pipe.

        The DataLoader's own thread would do this later, and would drop the batch if there is no room.

        Args:
            batch: images and labels.
        """
        info = get_worker_info()
        if info is None:  # the main process reads by itself
            return batch
        try:
            return tuple(part.share_memory_() for part in batch)
        except RuntimeError:  # no space left
            return tuple(part.numpy() for part in batch)
        finally:
            self._done[info.id] += 1

    def death(self) -> str:
        """Return how a worker has died, such as "killed by signal: Bus error"; "" if all live for another second."""
        started = [process for process in self._processes if process.pid]
        wait([process.sentinel for process in started], timeout=1)
        for process in started:
            process.join(0.1)  # a process that has ended is known to be dead a moment later
            if code := process.exitcode:
                return f"killed by signal: {signal.strsignal(-code)}" if code < 0 else f"ended with status {code}"
        return ""

    def kill(self) -> None:
        """Kill the workers, which may be waiting for a storage that does not answer."""
        for process in self._processes:
            if process.pid:
                process.kill()


def check_can_be_sent(dataset: Dataset) -> None:
    """Check that workers can get a data set. They need a pickle of it if they are not forks of this process.

    Raises:
        UserError: the data set cannot be pickled.
    """
    if multiprocessing.get_start_method() == "fork":
        return
    try:
        pickle.dumps(dataset)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UserError(
            f"the data set cannot be sent to the data workers ({error}); define its class and its transforms in a "
            "module, outside of functions, or set data.workers=0"
        ) from error


def fitting_prefetch(nbytes: int, workers: int, held: int, processes: int) -> tuple[int, str]:
    """Return how many batches each worker may read in advance so that all of them have room in shared memory.

    Args:
        nbytes: size of a process's batch.
        workers: number of workers of each process.
        held: number of batches that a process keeps in shared memory at once, in addition to those of its workers.
        processes: number of processes on this node.

    Returns:
        The number, at least 1 and at most PREFETCH, and a message if it is less than PREFETCH, else "".
    """
    try:
        found = os.statvfs(SHARED)
    except OSError:  # this system shares memory in another way
        return PREFETCH, ""
    room, batch = found.f_bavail * found.f_frsize, nbytes + 2 * found.f_frsize
    needed = {prefetch: processes * (prefetch * workers + held) * batch for prefetch in (PREFETCH, 1)}
    if not workers or needed[PREFETCH] <= room:
        return PREFETCH, ""
    less = f"each worker prefetches 1 batch instead of {PREFETCH}"
    if needed[1] > room:
        less += ", and batches without room go through pipes, which is slower"
    return 1, (
        f"{SHARED} has {room / 1e6:.0f} MB free, but {processes * workers} data workers with batches of "
        f"{nbytes / 1e6:.0f} MB need {needed[PREFETCH] / 1e6:.0f} MB: {less}; enlarge it (docker run --shm-size="
        f"{-(-needed[PREFETCH] // 2**30)}g), or lower data.workers"
    )
