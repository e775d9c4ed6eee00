"""Communication between the processes of a run outside of collectives: heartbeats, waits and messages about failures.

Everything goes through the key-value store of torch.distributed. A wait through the store has no time-out, unlike a
wait in a collective, so it may last for hours.
"""

from __future__ import annotations

import functools
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch

from gan_dist.errors import UserError

BEAT = 5.0  # seconds between two heartbeats of a process
SILENCE = 30.0  # a process without a heartbeat for so many seconds counts as lost
_FAILED = "gan_dist/failed"  # key in the store under which the first process that fails writes its message


class Peers:
    """The other processes of a run, as seen by one process. Each process has one such object; get it from `meet`.

    The object writes this process's host name and process id into the store, so that the other processes can name it if
    it dies. A thread of the object sends heartbeats and waits for messages about failures.

    Args:
        rank: number of this process, 0 … world_size - 1.
        world_size: number of processes in the run.
    """

    def __init__(self, rank: int, world_size: int) -> None:
        self._rank, self._world_size = rank, world_size
        self._store = torch.distributed.distributed_c10d._get_default_store()
        self._store.set(f"gan_dist/process/{rank}", f"{socket.gethostname()}, pid {os.getpid()}")
        self._waits = 0  # how often this process has waited for others; the number is the same in all processes
        self._peer_failure = ""  # the message of the first other process that failed; "" as long as none has
        self._lost: Sequence[int] = ()  # ranks of the processes whose heartbeats have stopped
        # The thread gets its own connection to the store: two threads that wait on one connection block each other.
        self._listener = threading.Thread(target=self._listen, args=(self._store.clone(),), daemon=True)
        self._listener.start()

    def wait_for_main(self) -> None:
        """Wait until the main process has called this function too, as long as it takes.

        Raises:
            UserError: the main process sends no more heartbeats.
            torch.distributed.DistError: another process has failed.
        """
        self._waits += 1
        here = f"gan_dist/main/{self._waits}"
        if self._rank == 0:
            self._store.set(here, "")
        self._wait_for(here)

    def wait_for_all(self) -> None:
        """Wait until all processes have called this function, as long as it takes.

        Raises:
            UserError: a process sends no more heartbeats.
            torch.distributed.DistError: another process has failed.
        """
        self._waits += 1
        here = f"gan_dist/here/{self._waits}"
        if self._store.add(here, 1) == self._world_size:
            self._store.set(f"{here}/all", "")
        self._wait_for(f"{here}/all")

    def first(self, key: str) -> bool:
        """Tell if this process is the first that calls this function with `key`."""
        return self._store.add(f"gan_dist/first/{key}", 1) == 1

    def part(self) -> None:
        """Stop the thread. All processes call this function last, after a run without failure."""
        self._store.set(_FAILED, "")  # an empty message ends the thread
        self._listener.join()  # a thread that still waits inside torch must not outlive the interpreter

    def failure(self, error: Exception) -> Exception:
        """Return the error to report in place of `error`.

        This is `error` itself, unless the failure or loss of another process caused it. Then it is a UserError that
        says what happened in the other process.
        """
        if self._peer_failure:
            return UserError(self._peer_failure)
        try:
            if not _is_about_a_peer(error):
                what = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {_one_line(error)}"
                # Only the first message is kept: `compare_set` writes nothing if there is one already.
                self._store.compare_set(_FAILED, "", f"rank {self._rank} failed: {what}")
                self._without_sign("heard")  # wait until the other processes have read the message
                return error
            # The loss of a process causes an error in all others, and each of them comes here.
            lost = self._places(self._without_sign("alive")) or "no process"
        except RuntimeError:
            lost = "rank 0 or its launcher, which kept the store"
        return UserError(f"lost {lost} ({_one_line(error)})")

    def _wait_for(self, key: str) -> None:
        """Wait until the store has a key. Meanwhile rank 0 watches the heartbeats of all others, and they watch rank 0.

        No collective is pending, so no time-out can end the wait.

        Raises:
            UserError: the heartbeats of a watched process have stopped.
            torch.distributed.DistError: another process has failed.
        """
        watched = range(1, self._world_size) if self._rank == 0 else [0]
        beats, silent = dict.fromkeys(watched, 0), dict.fromkeys(watched, 0)
        while not self._store.check([key]):
            with suppress(torch.distributed.DistStoreError):  # raised if the key does not appear within BEAT seconds
                self._store.wait([key], timedelta(seconds=BEAT))
                return
            if self._peer_failure:
                raise torch.distributed.DistError(self._peer_failure)
            for rank in watched:
                # Count missed polls, not seconds: when a job is suspended, its clocks jump although nobody has died.
                beat = self._store.add(f"gan_dist/beat/{rank}", 0)
                silent[rank] = silent[rank] + 1 if beat == beats[rank] else 0
                beats[rank] = beat
            self._lost = [rank for rank in watched if silent[rank] * BEAT >= SILENCE]
            if self._lost:
                raise UserError(f"lost {self._places(self._lost)}: no heartbeat for {SILENCE:.0f} s")

    def _places(self, ranks: Sequence[int]) -> str:
        """The ranks with their host names and process ids, for a message."""
        keys = {rank: f"gan_dist/process/{rank}" for rank in ranks}
        known = {rank for rank, key in keys.items() if self._store.check([key])}
        places = {rank: self._store.get(keys[rank]).decode() if rank in known else "unknown host" for rank in ranks}
        return "; ".join(f"rank {rank} ({place})" for rank, place in places.items())

    def _listen(self, store: Any) -> None:
        """Send heartbeats until a process writes a message: about its failure, or an empty one at the end of the run.

        After a failure elsewhere this process may be waiting for the failed process in a collective on a GPU, which it
        would do until the time-out. So this thread ends the process if it is still alive after 10 seconds.
        """
        try:
            while not store.check([_FAILED]):
                with suppress(torch.distributed.DistStoreError):
                    store.add(f"gan_dist/beat/{self._rank}", 1)
                    store.wait([_FAILED], timedelta(seconds=BEAT))
            message = store.get(_FAILED).decode()
            if not message or message.startswith(f"rank {self._rank} "):
                return
            self._peer_failure = f"stopped, because {message}"
            store.set(f"gan_dist/heard/{self._rank}", "")
        except RuntimeError:  # the process that kept the store has ended, so the run is over
            return
        time.sleep(10)
        print(f"gan-dist: rank {self._rank}: error: {self._peer_failure}", file=sys.stderr, flush=True)
        os._exit(1)

    def _without_sign(self, word: str) -> list[int]:
        """Write the sign `word` for this process, and return the ranks that do not write theirs within 5 seconds.

        Processes that are already lost are not counted.
        """
        keys = {rank: f"gan_dist/{word}/{rank}" for rank in range(self._world_size) if rank not in self._lost}
        self._store.set(keys[self._rank], "")
        with suppress(torch.distributed.DistStoreError):
            # Rank 0 waits 2 seconds longer, because it may keep the store that the others still read.
            self._store.wait(list(keys.values()), timedelta(seconds=7 if self._rank == 0 else 5))
        return [rank for rank, key in keys.items() if not self._store.check([key])]


@functools.cache
def meet(rank: int, world_size: int) -> Peers:
    """Return the `Peers` of this process; a process has only one. Call it once the process group is initialised."""
    return Peers(rank, world_size)


def _is_about_a_peer(error: Exception) -> bool:
    """Tell if the loss of another process caused the error.

    Gloo raises plain RuntimeErrors, which can be recognised only by words in their messages.
    """
    words = ("closed by peer", "reset by peer", "gloo", "NCCL", "Broken pipe", "Timed out", "timed out", "Socket")
    return isinstance(error, torch.distributed.DistError) or (
        type(error) is RuntimeError and any(word in str(error) for word in words)
    )


def _one_line(error: Exception) -> str:
    """The message of an error in one line, without the source file and the advice that gloo adds to it."""
    text = " ".join(str(error).split())
    return re.sub(r"^\[\S+\] |\. This is typically.*", "", text)[:300]
