"""One program at a time in a run directory, and none that writes elsewhere from there."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from filelock import FileLock, Timeout

from gan_dist.errors import UserError

WORKERS_GONE = 15.0  # seconds after which the data workers of a killed program have noticed it: they share its lock


def lock_run(run_dir: Path) -> FileLock:
    """Take the run directory until this process ends, however it ends: the operating system lets go of it.

    Raises:
        UserError: another program has it; says which. Or there are links in it.
    """
    refuse_links(run_dir)
    lock, owner = FileLock(run_dir / ".lock"), run_dir / ".owner"
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            host, _, pid = _read(owner).partition(" ")
            lock.acquire(timeout=WORKERS_GONE if host == socket.gethostname() and not _runs(pid) else 0)
        owner.write_text(f"{socket.gethostname()} {os.getpid()}")
    except Timeout:
        host, _, pid = _read(owner).partition(" ")
        raise UserError(
            f"run.dir={run_dir} is in use by process {pid} on {host}: stop that one first, or name another directory"
        ) from None
    except OSError as error:
        raise UserError(f"run.dir={run_dir}: cannot write there ({error.strerror})") from None
    return lock


def refuse_links(run_dir: Path) -> None:
    """Nothing is written to a directory where a link leads elsewhere: it may be a stranger's.

    Raises:
        UserError: names the link.
    """
    for pattern in ("*", "samples/*", "checkpoints/*", "generated/*"):  # where names can be foreseen
        for path in run_dir.glob(pattern):
            if path.is_symlink():
                raise UserError(f"{path} is a link, which a run never makes, and would write elsewhere: remove it")


def _read(owner: Path) -> str:
    return owner.read_text() if owner.exists() else "an unknown host ?"


def _runs(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True
