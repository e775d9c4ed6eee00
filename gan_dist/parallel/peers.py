"""What processes know of each other: signs of life, waits without a time-out, and why the first one failed.

All of it goes through the store that torch.distributed keeps beside its collectives.
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

BEAT = 5.0  # seconds between two signs of life of each process
SILENCE = 30.0  # seconds without one, after which those who wait for a process give it up
_FAILED = "gan_dist/failed"  # where the first process that fails leaves its message


class Peers:
    """The processes of a run of several, as one of them sees them: get it from `meet`.

    It leaves this process's host and number where those who outlive it find them, and listens for failures.
    """

    def __init__(self, rank: int, world_size: int) -> None:
        self._rank, self._world_size = rank, world_size
        self._store = torch.distributed.distributed_c10d._get_default_store()
        self._store.set(f"gan_dist/process/{rank}", f"{socket.gethostname()}, pid {os.getpid()}")
        self._waits = 0  # how often this process has waited for others; all count alike
        self._heard = ""  # what another process said when it failed
        self._lost: Sequence[int] = ()  # those who have given no sign of life
        # Waits of two threads on one connection would block each other.
        self._listener = threading.Thread(target=self._listen, args=(self._store.clone(),), daemon=True)
        self._listener.start()

    def wait_for_main(self) -> None:
        """Wait until the main process has come here, as long as it takes."""
        self._waits += 1
        here = f"gan_dist/main/{self._waits}"
        if self._rank == 0:
            self._store.set(here, "")
        self._wait_for(here)

    def wait_for_all(self) -> None:
        """Wait until all have come here, as long as it takes."""
        self._waits += 1
        here = f"gan_dist/here/{self._waits}"
        if self._store.add(here, 1) == self._world_size:
            self._store.set(f"{here}/all", "")
        self._wait_for(f"{here}/all")

    def part(self) -> None:
        """The last thing that is called, in all processes, after a run that went well."""
        self._store.set(_FAILED, "")
        self._listener.join()  # a thread that torch keeps waiting must not outlive the interpreter

    def failure(self, error: Exception) -> Exception:
        """What to raise for an exception: itself, or, where another process's end caused it, what happened there."""
        if self._heard:
            return UserError(self._heard)
        try:
            if not _is_about_a_peer(error):
                what = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {_one_line(error)}"
                self._store.compare_set(_FAILED, "", f"rank {self._rank} failed: {what}")  # the first one stays
                self._missing("heard")
                return error
            lost = self._places(self._missing("alive")) or "no process"
        except RuntimeError:
            lost = "rank 0 or its launcher, who kept the store"
        return UserError(f"lost {lost} ({_one_line(error)})")

    def _wait_for(self, key: str) -> None:
        """Wait until the store has a key, while rank 0 watches all others and these watch it.

        No collective, and so no time-out, is pending.
        """
        watched = range(1, self._world_size) if self._rank == 0 else [0]
        beats, silent = dict.fromkeys(watched, 0), dict.fromkeys(watched, 0)
        while not self._store.check([key]):
            with suppress(torch.distributed.DistStoreError):  # nothing yet
                self._store.wait([key], timedelta(seconds=BEAT))
                return
            if self._heard:
                raise torch.distributed.DistError(self._heard)
            for rank in watched:
                beat = self._store.add(f"gan_dist/beat/{rank}", 0)
                silent[rank] = silent[rank] + 1 if beat == beats[rank] else 0  # looks, not time: all may be suspended
                beats[rank] = beat
            self._lost = [rank for rank in watched if silent[rank] * BEAT >= SILENCE]
            if self._lost:
                raise UserError(f"lost {self._places(self._lost)}: no sign of life for {SILENCE:.0f} s")

    def _places(self, ranks: Sequence[int]) -> str:
        keys = {rank: f"gan_dist/process/{rank}" for rank in ranks}
        known = {rank for rank, key in keys.items() if self._store.check([key])}
        places = {rank: self._store.get(keys[rank]).decode() if rank in known else "unknown host" for rank in ranks}
        return "; ".join(f"rank {rank} ({place})" for rank, place in places.items())

    def _listen(self, store: Any) -> None:
        """Give signs of life, until the message of a process that fails comes, or an empty one at the end.

        A process that waits for a failed one on a GPU would do so until the time-out: it is ended here.
        """
        try:
            while not store.check([_FAILED]):
                with suppress(torch.distributed.DistStoreError):
                    store.add(f"gan_dist/beat/{self._rank}", 1)
                    store.wait([_FAILED], timedelta(seconds=BEAT))
            message = store.get(_FAILED).decode()
            if not message or message.startswith(f"rank {self._rank} "):
                return
            self._heard = f"stopped, because {message}"
            store.set(f"gan_dist/heard/{self._rank}", "")
        except RuntimeError:  # the store is gone, and with it the run
            return
        time.sleep(10)
        print(f"gan-dist: rank {self._rank}: error: {self._heard}", file=sys.stderr, flush=True)
        os._exit(1)

    def _missing(self, word: str) -> list[int]:
        """Those who do not give this sign within 5 seconds."""
        keys = {rank: f"gan_dist/{word}/{rank}" for rank in range(self._world_size) if rank not in self._lost}
        self._store.set(keys[self._rank], "")
        with suppress(torch.distributed.DistStoreError):
            # Rank 0 may keep the store that the others ask, and goes last.
            self._store.wait(list(keys.values()), timedelta(seconds=7 if self._rank == 0 else 5))
        return [rank for rank, key in keys.items() if not self._store.check([key])]


@functools.cache
def meet(rank: int, world_size: int) -> Peers:
    """The one object of a process, once its group is there."""
    return Peers(rank, world_size)


def _is_about_a_peer(error: Exception) -> bool:
    """Gloo raises plain RuntimeErrors: they are known by their words."""
    words = ("closed by peer", "reset by peer", "gloo", "NCCL", "Broken pipe", "Timed out", "timed out", "Socket")
    return isinstance(error, torch.distributed.DistError) or (
        type(error) is RuntimeError and any(word in str(error) for word in words)
    )


def _one_line(error: Exception) -> str:
    """Without the source file before and the advice after it that gloo adds."""
    text = " ".join(str(error).split())
    return re.sub(r"^\[\S+\] |\. This is typically.*", "", text)[:300]
