"""Communication between the processes of a run outside of collectives: heartbeats, waits and messages about failures.

Everything goes through the key-value store on which the processes have met (`gan_dist.parallel.rendezvous`). A wait
through the store has no time-out, unlike a wait in a collective, so it may last for hours.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch

from gan_dist.errors import UserError

BEAT = 5.0  # seconds between two heartbeats of a process
SILENCE = 30.0  # a process without a heartbeat for so many seconds counts as lost
GRACE = 8.0  # seconds that a process has to end by itself after it has heard of a failure elsewhere
_FAILED = "gan_dist/failed"  # key in the store under which the first process that fails writes its message


class Peers:
    """The other processes of a run, as seen by one process. Get it from `gan_dist.parallel.rendezvous.join`.

    The object writes this process's host name and process id into the store, so that the other processes can name it if
    it dies. A thread of the object sends heartbeats and waits for messages about failures.

    Args:
        store: a connection to the key-value store of the run.
        rank: number of this process, 0 … world_size - 1.
        world_size: number of processes in the run.
        by_launcher: the launcher keeps the store, not rank 0.

    Attributes:
        ends_process: a process that hangs after a failure elsewhere is ended. The command line sets this; a process in
            which `gan_dist.train` was called belongs to its user, and is never ended.
        store, rank, world_size: as in `Args`.
        told: the other processes know that this process ends.
        absent: the ranks that have not come yet. Rank 0 waits for all others, and they wait for rank 0.
        lost: the ranks whose heartbeats have stopped, or which have not come in time.
        store_lost: the launcher that kept the store has ended. Waits then return at once.

    Raises:
        UserError: there is another process with the same rank.
    """

    ends_process = False

    def __init__(self, store: Any, rank: int, world_size: int, by_launcher: bool = False) -> None:
        self.store, self.rank, self.world_size = store, rank, world_size
        self._by_launcher = by_launcher
        self.told = self.store_lost = False
        self.lost: Sequence[int] = ()
        this = f"{socket.gethostname()}, pid {os.getpid()}"
        found = store.compare_set(_place_of(rank), "", this).decode()
        if found != this:
            raise UserError(
                f"another process ({found}) is rank {rank} already: give each process its own RANK, and each run its "
                "own MASTER_PORT"
            )
        self._turns = 0  # how often this process has waited for others; the number is the same in all processes
        self._watched = range(1, world_size) if rank == 0 else range(1)  # all processes watch rank 0, which watches all
        self.absent = list(self._watched)
        self._failure: tuple[str, int] | None = None  # message and exit status of the first other process that failed
        # The thread gets its own connection to the store: two threads that wait on one connection block each other.
        self._listener = threading.Thread(target=self._listen, args=(store.clone(),), daemon=True)
        self._listener.start()

    def wait_until_all_are_there(self, meanwhile: Callable[[], None]) -> None:
        """Wait until all processes of the run have such an object.

        Args:
            meanwhile: called every few seconds. It ends the wait by raising an error; `absent` says who is missing.

        Raises:
            UserError, torch.distributed.DistError: see `wait_for`.
        """
        if self.rank == 0:
            self.wait_for([_place_of(rank) for rank in range(self.world_size)], meanwhile)
            self.store.set("gan_dist/all", "")
        self.wait_for(["gan_dist/all"], meanwhile)
        self.absent = []

    def wait_for_main(self) -> None:
        """Wait until the main process has called this function too, as long as it takes.

        Raises:
            UserError, torch.distributed.DistError: see `wait_for`.
        """
        here = self.turn("main")

        def wait() -> None:
            if self.rank == 0:
                self.store.set(here, "")
            self.wait_for([here])

        self._unless_store_is_lost(wait)

    def wait_for_all(self) -> None:
        """Wait until all processes have called this function, as long as it takes.

        Raises:
            UserError, torch.distributed.DistError: see `wait_for`.
        """
        here = self.turn("here")

        def wait() -> None:
            if self.store.add(here, 1) == self.world_size:
                self.store.set(f"{here}/all", "")
            self.wait_for([f"{here}/all"])

        self._unless_store_is_lost(wait)

    def turn(self, word: str) -> str:
        """Return a key for the store that was not used before. All processes get the same one, if all ask for it."""
        self._turns += 1
        return f"gan_dist/{word}/{self._turns}"

    def first(self, key: str) -> bool:
        """Tell if this process is the first that calls this function with `key`."""
        return self.store.add(f"gan_dist/first/{key}", 1) == 1

    def part(self) -> None:
        """Stop the thread. All processes call this function last, after a run without failure."""
        self.told = True
        self._unless_store_is_lost(lambda: self.store.set(_FAILED, ""))  # an empty message ends the thread
        self._listener.join()  # a thread that still waits inside torch must not outlive the interpreter

    def tell(self, error: BaseException) -> None:
        """Tell the other processes that this one ends with an error, and wait until they have read it.

        If another process has told its own error already, only that one is kept.
        """
        self.told = True
        what = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {_one_line(error)}"
        status = error.exit_status if isinstance(error, UserError) else 1
        # `compare_set` writes nothing if there is a message already.
        self.store.compare_set(_FAILED, "", json.dumps([self.rank, f"rank {self.rank} failed: {what}", status]))
        self._without_sign("heard")

    def failure(self, error: Exception) -> Exception:
        """Return the error to report in place of `error`, and tell the other processes about it.

        This is `error` itself, unless the failure or loss of another process caused it. Then it is a UserError that
        says what happened in the other process.
        """
        if self._failure:
            if self.rank == 0 and not self.told:
                with suppress(RuntimeError):
                    self._without_sign("heard")  # rank 0 may keep the store, which the others still read
            self.told = True
            elsewhere = UserError(self._failure[0])
            elsewhere.exit_status = self._failure[1]
            return elsewhere
        try:
            if not _is_about_a_peer(error):
                self.tell(error)
                return error
            # The loss of a process causes an error in all others, and each of them comes here.
            lost = self._places(self._without_sign("alive")) or "no process"
        except RuntimeError:
            lost = "rank 0 or its launcher, which kept the store"
        self.told = True
        return UserError(f"lost {lost} ({_one_line(error)})")

    def wait_for(self, keys: Sequence[str], meanwhile: Callable[[], None] = lambda: None) -> None:
        """Wait until the store has all keys. Meanwhile rank 0 watches the heartbeats of all others, and they watch it.

        No collective is pending, so no time-out can end the wait.

        Args:
            keys: the keys.
            meanwhile: called every few seconds.

        Raises:
            UserError: the heartbeats of a watched process have stopped.
            torch.distributed.DistError: another process has failed, or the store is gone.
        """
        beats, silent = dict.fromkeys(self._watched, 0), dict.fromkeys(self._watched, 0)
        while not self.store.check(list(keys)):
            with suppress(torch.distributed.DistStoreError):  # raised if a key does not appear within BEAT seconds
                self.store.wait(list(keys), timedelta(seconds=BEAT))
                return
            if self._failure:
                raise torch.distributed.DistError(self._failure[0])
            self.absent = [rank for rank in self.absent if not self.store.check([_place_of(rank)])]
            for rank in set(self._watched) - set(self.absent):
                # Count missed polls, not seconds: when a job is suspended, its clocks jump although nobody has died.
                beat = self.store.add(f"gan_dist/beat/{rank}", 0)
                silent[rank] = silent[rank] + 1 if beat == beats[rank] else 0
                beats[rank] = beat
            self.lost = [rank for rank in self._watched if silent[rank] * BEAT >= SILENCE]
            if self.lost:
                raise UserError(f"lost {self._places(self.lost)}: no heartbeat for {SILENCE:.0f} s")
            meanwhile()

    def _unless_store_is_lost(self, act: Callable[[], None]) -> None:
        """Call `act`, which uses the store. If the launcher that kept the store is gone, do without the store.

        Collectives still work then, so the processes can save a checkpoint together.
        """
        if self.store_lost:
            return
        try:
            act()
        except torch.distributed.DistNetworkError:
            if not self._by_launcher:
                raise
            self.store_lost = True

    def _places(self, ranks: Sequence[int]) -> str:
        """The ranks with their host names and process ids, for a message."""
        known = {rank for rank in ranks if self.store.check([_place_of(rank)])}
        places = {rank: self.store.get(_place_of(rank)).decode() if rank in known else "unknown host" for rank in ranks}
        return "; ".join(f"rank {rank} ({place})" for rank, place in places.items())

    def _listen(self, store: Any) -> None:
        """Send heartbeats until a process writes a message: about its failure, or an empty one at the end of the run.

        After a failure elsewhere this process may be waiting for the failed process in a collective on a GPU, which it
        would do until the time-out. So this thread ends a process of the command line that is still alive after GRACE
        seconds.
        """
        try:
            while not store.check([_FAILED]):
                with suppress(torch.distributed.DistStoreError):
                    store.add(f"gan_dist/beat/{self.rank}", 1)
                    store.wait([_FAILED], timedelta(seconds=BEAT))
            content = store.get(_FAILED).decode()
            if not content:
                return
            rank, message, status = json.loads(content)
            if rank == self.rank:
                return
            reason = f"stopped, because {message}"
            self._failure = reason, status
            store.set(f"gan_dist/heard/{self.rank}", "")
        except RuntimeError:
            # The process that kept the store has ended. If that was rank 0, the run is over.
            self.store_lost = self._by_launcher
            return
        if not self.ends_process:
            return
        time.sleep(GRACE)
        with suppress(OSError, ValueError):
            print(f"gan-dist: rank {self.rank}: error: {reason}", file=sys.stderr, flush=True)
        os._exit(status)

    def _without_sign(self, word: str) -> list[int]:
        """Write the sign `word` for this process, and return the ranks that do not write theirs within some seconds.

        Processes that are already lost are not counted.
        """
        keys = {rank: f"gan_dist/{word}/{rank}" for rank in range(self.world_size) if rank not in self.lost}
        self.store.set(keys[self.rank], "")
        # Rank 0 waits longer, because it may keep the store that the others still read, or have yet to find.
        seconds = 5 if self.rank else 20 if self.absent else 7
        with suppress(torch.distributed.DistStoreError):
            self.store.wait(list(keys.values()), timedelta(seconds=seconds))
        return [rank for rank, key in keys.items() if not self.store.check([key])]


def _place_of(rank: int) -> str:
    """The key in the store under which a process writes its host name and process id."""
    return f"gan_dist/process/{rank}"


def _is_about_a_peer(error: Exception) -> bool:
    """Tell if the loss of another process caused the error.

    Gloo raises plain RuntimeErrors, which can be recognised only by words in their messages.
    """
    words = ("closed by peer", "reset by peer", "gloo", "NCCL", "Broken pipe", "Timed out", "timed out", "Socket")
    return isinstance(error, torch.distributed.DistError) or (
        type(error) is RuntimeError and any(word in str(error) for word in words)
    )


def _one_line(error: BaseException) -> str:
    """The message of an error in one line, without the source file and the advice that gloo adds to it."""
    text = " ".join(str(error).split())
    return re.sub(r"^\[\S+\] |\. This is typically.*", "", text)[:300]
