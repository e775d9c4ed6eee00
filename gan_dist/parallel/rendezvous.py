"""How the processes of a run find each other, before a device or a process group is made.

They meet on a key-value store of torch. The launcher keeps the store if it is torchrun or `accelerate launch`,
otherwise rank 0 does. The process group then uses the same store.
"""

from __future__ import annotations

import atexit
import gc
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch.distributed import PrefixStore, TCPStore

from gan_dist.errors import ConfigError, UserError
from gan_dist.parallel.peers import Peers
from gan_dist.parallel.signals import StopRequest
from gan_dist.parallel.world import Place, read_place

log = logging.getLogger(__name__)

SAY = 30.0  # who is missing is said after so many seconds
ANSWER = 15.0  # how many seconds the store has for its first answer
TELL = 20.0  # how many seconds a process that ends with an error looks for the others
TIMEOUT = timedelta(minutes=10)  # how long a collective waits for a process that still runs but does not answer

_peers: Peers | None = None  # a process has only one
_tried = False  # this process has tried to find the others
_group = False  # the process group is one that `make_group` has made
_meetings = 0  # how often this process has left the others
_stores: dict[tuple[str, int], TCPStore] = {}  # the open connection to each store, by its address and port


def join(minutes: float = 10.0, signals: StopRequest | None = None) -> Peers | None:
    """Wait until all processes of the run have called this function. A later call returns at once.

    Args:
        minutes: how long to wait. Who is missing is said after 30 seconds.
        signals: the first signal ends the wait.

    Returns:
        The other processes; None if this process trains alone.

    Raises:
        ConfigError: the launcher's variables are impossible.
        UserError: a process has not come, has failed or was lost; or the port is taken.
    """
    place = read_place()
    if place is None:
        return None
    if _peers is None:
        patience = _Patience(place, minutes, signals)
        peers = _enter(place, patience)

        def check() -> None:
            try:
                patience.check(peers.absent)
            except UserError:
                peers.lost = peers.absent
                raise

        try:
            peers.wait_until_all_are_there(check)
        except RuntimeError as error:
            raise peers.failure(error) from None
    return _peers


def tell(error: BaseException) -> bool:
    """Tell the other processes that this one ends with an error, unless they know it already.

    Returns:
        Whether the main process knows it, or has ended with an error before.
    """
    try:
        place = read_place()
        if place is None or (_tried and _peers is None):
            return False
        peers = _peers or _enter(place, _Patience(place, TELL / 60, None))
        if not peers.told:
            peers.tell(error)
        return peers.rank == 0 or peers.store.check(["gan_dist/heard/0"])
    except UserError:
        return False
    except RuntimeError:  # the store is gone, and so is rank 0 or the launcher
        return True


def make_group(peers: Peers, backend: str) -> None:
    """Make the process group, which uses the store on which the processes have met. It is made only once.

    Args:
        peers: the other processes.
        backend: "nccl" or "gloo".

    Raises:
        UserError: the processes cannot connect to each other.
    """
    global _group
    if torch.distributed.is_initialized():
        return
    peers.store.set_timeout(TIMEOUT)
    store = PrefixStore("group", peers.store)
    try:
        torch.distributed.init_process_group(
            backend, timeout=TIMEOUT, world_size=peers.world_size, rank=peers.rank, store=store
        )
        _group = True
    except RuntimeError as error:
        raise peers.failure(error) from None


def have_met() -> bool:
    """Tell if this process has found the other processes of a run, and has not left them."""
    return _peers is not None


def leave() -> None:
    """Forget the other processes and end the process group, so that another run can start in the same processes.

    The connection to the store stays open for the next run, which meets under keys of its own.
    """
    global _peers, _tried, _group, _meetings
    if _tried:
        _meetings += 1
    if _peers:
        atexit.unregister(_peers.part)
    if _group and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        gc.collect()  # networks that refer to themselves keep the group's connections open
    _peers, _tried, _group = None, False, False


class _Patience:
    """Says who is missing after some time, and ends the wait after some minutes.

    Args:
        place: this process.
        minutes: how long to wait.
        signals: the first signal ends the wait.
    """

    def __init__(self, place: Place, minutes: float, signals: StopRequest | None) -> None:
        self._place, self._minutes, self._signals = place, minutes, signals
        self._start, self._said = time.monotonic(), False

    def check(self, absent: Sequence[int], why: str = "") -> None:
        """Call this again and again while processes are missing.

        Args:
            absent: their ranks.
            why: the reason, if it is known.

        Raises:
            UserError: the time is over, or a signal has arrived.
        """
        if self._signals and self._signals.received:
            error = UserError(f"stopped by {self._signals.received.name} before all processes had found each other")
            error.exit_status = 75  # the run can be resumed
            raise error
        if not absent:
            return
        named = ", ".join(map(str, absent[:8])) + (", …" if len(absent) > 8 else "")
        who = f"rank{'s' if len(absent) > 1 else ''} {named} of {self._place.world_size}"
        who += f" at {self._place.address}:{self._place.port}{why}"
        waited = time.monotonic() - self._start
        if waited > self._minutes * 60:
            raise UserError(
                f"waited for {who} for {self._minutes:.3g} minutes, in vain: see if it was started and if its host can "
                "be reached; train.meet_minutes sets the time"
            )
        # If rank 0 itself is missing, nobody can choose one process that says it: rank 1 does, and one on each node.
        if waited > SAY and not self._said and (self._place.rank in (0, 1) or self._place.local_rank == 0):
            self._said = True
            log.warning("waiting for %s; after %.3g minutes the start is given up", who, self._minutes)


def _enter(place: Place, patience: _Patience) -> Peers:
    """Connect to the store, and let the other processes know that this one is there."""
    global _peers, _tried
    _tried = True
    # torchrun and `accelerate launch` set this variable if they keep a store at this address for their processes.
    by_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    where = place.address, place.port
    if where not in _stores:
        listener = None if by_launcher or place.rank else _listen(place)
        _wait_until_reachable(place, patience)
        _stores[where] = _open_store(place, listener)
    # A launcher that starts the processes once more may keep the store, so each start has keys of its own.
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = PrefixStore(f"start {start}.{_meetings}", _stores[where])
    size = store.compare_set("gan_dist/world_size", "", str(place.world_size)).decode()
    if size != str(place.world_size):
        raise UserError(
            f"WORLD_SIZE={place.world_size}, but the run at {place.address}:{place.port} has {size} processes: give "
            "all processes of a run the same WORLD_SIZE, and each run its own MASTER_PORT"
        )
    _peers = Peers(store, place.rank, place.world_size, by_launcher)
    if place.world_size == 1:
        atexit.register(_peers.part)  # a run of several processes ends its threads when all of them are done
    return _peers


def _listen(place: Place) -> socket.socket:
    """Open the port on which rank 0 keeps the store."""
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    try:
        return socket.create_server(
            ("", place.port), family=family, backlog=4096, dualstack_ipv6=family == socket.AF_INET6
        )
    except OSError as error:
        raise UserError(
            f"MASTER_PORT={place.port}: rank 0 cannot use this port of {socket.gethostname()} ({error.strerror}): "
            "choose another port, or let torchrun --standalone or slurm/train.sbatch choose one"
        ) from None


def _wait_until_reachable(place: Place, patience: _Patience) -> None:
    """Wait until a program listens at the address where the processes meet."""
    while True:
        try:
            socket.create_connection((place.address, place.port), timeout=5).close()
            return
        except (socket.gaierror, UnicodeError) as error:
            if isinstance(error, UnicodeError) or error.errno != socket.EAI_AGAIN:
                raise ConfigError(f"MASTER_ADDR={place.address}: no host has this name") from None
            why = error.strerror
        except OSError as error:
            why = error.strerror or str(error)
        patience.check([0], f" ({why})")
        time.sleep(0.2)


def _open_store(place: Place, listener: socket.socket | None) -> TCPStore:
    """Connect to the store; with `listener`, the open port, keep it in this process too.

    Raises:
        UserError: another program answers, or none.
    """
    opened: list[TCPStore] = []

    def open_store() -> None:
        try:
            opened.append(
                TCPStore(
                    place.address,
                    place.port,
                    is_master=listener is not None,
                    timeout=timedelta(seconds=ANSWER),
                    wait_for_workers=False,
                    master_listen_fd=listener.detach() if listener else None,
                )
            )
        except (RuntimeError, ValueError):
            return

    # If another program listens there and says nothing, torch waits for ever. So a thread waits in place of this one.
    thread = threading.Thread(target=open_store, daemon=True)
    with _no_errors_of_torch():
        thread.start()
        thread.join(ANSWER)
    if not opened:
        where = "another program" if not listener else f"a host other than {socket.gethostname()}, where rank 0 runs,"
        raise UserError(
            f"MASTER_ADDR={place.address} MASTER_PORT={place.port}: {where} answers there, and not the store of this "
            "run: choose another port, and the host of rank 0"
        )
    return opened[0]


@contextmanager
def _no_errors_of_torch() -> Iterator[None]:
    """A context in which nothing is printed on standard error: torch prints all of its calls there at an error."""
    kept = os.dup(2)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(nothing)
        os.close(kept)
