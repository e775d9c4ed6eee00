"""Lock a run directory, so that only one program uses it at a time; and refuse links in it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from filelock import FileLock, Timeout

from gan_dist.errors import UserError

# The DataLoader workers of a killed program hold its lock until they notice that the program has ended. This takes them
# at most so many seconds.
WORKERS_GONE = 15.0


def lock_run(run_dir: Path) -> FileLock:
    """Lock the run directory until this process ends.

    The operating system releases the lock when the process ends, even if it is killed.

    Returns:
        The lock. It is released if this object is deleted, so the caller must keep it.

    Raises:
        UserError: another program holds the lock (the message names its process id and host), the directory contains
            links, or it cannot be written to.
    """
    refuse_links(run_dir)
    lock, owner = FileLock(run_dir / ".lock"), run_dir / ".owner"
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            host, _, pid = _read(owner).partition(" ")
            lock.acquire(timeout=WORKERS_GONE if host == socket.gethostname() and not _runs(pid) else 0)
        owner.write_text(f"{socket.gethostname()} {os.getpid()}", encoding="utf-8")
    except Timeout:
        host, _, pid = _read(owner).partition(" ")
        raise UserError(
            f"run.dir={run_dir} is in use by process {pid} on {host}: stop that one first, or name another directory"
        ) from None
    except OSError as error:
        raise UserError(f"run.dir={run_dir}: cannot write there ({error.strerror})") from None
    return lock


def refuse_links(run_dir: Path) -> None:
    """Refuse a run directory that contains symbolic links.

    A run directory may come from a stranger. If one of its files were a link, the run would change a file elsewhere.

    Raises:
        UserError: there is a link; the message names it.
    """
    for pattern in ("*", "samples/*", "checkpoints/*", "generated/*"):  # the places where a run writes
        for path in run_dir.glob(pattern):
            if path.is_symlink():
                raise UserError(f"{path} is a link; a run never makes links and does not write through them: remove it")


def _read(owner: Path) -> str:
    """The content of the file `.owner`: host name, space, process id."""
    return owner.read_text(encoding="utf-8", errors="replace") if owner.exists() else "an unknown host ?"


def _runs(pid: str) -> bool:
    """Tell if there is a process with this id on this host."""
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True
