"""Lock a run directory, so that only one program uses it at a time; refuse links, FIFOs and devices in it."""

from __future__ import annotations

import logging
import os
import socket
import stat
from pathlib import Path

from filelock import FileLock, Timeout

from gan_dist.errors import ConfigError, UserError
from gan_dist.files import FlushError, check_disk, read_file, replacing

log = logging.getLogger(__name__)

# The DataLoader workers of a killed program hold its lock until they notice that the program has ended. This takes them
# at most so many seconds.
WORKERS_GONE = 15.0


def lock_run(run_dir: Path) -> FileLock:
    """Lock the run directory until this process ends.

    The operating system releases the lock when the process ends, even if it is killed.

    Returns:
        The lock. It is released if this object is deleted, so the caller must keep it.

    Raises:
        ConfigError: the file system cannot flush files to disk.
        UserError: another program holds the lock (the message names its process id and host), the directory contains
            links, FIFOs or devices, or it cannot be written to.
    """
    refuse_links(run_dir)
    lock, owner = FileLock(run_dir / ".lock"), run_dir / ".owner"
    try:
        if not check_disk(run_dir):
            log.warning(
                "run.dir=%s: the file system cannot flush directories; if the machine itself crashes, the newest "
                "checkpoint may be lost; name a run.dir on another file system if that must not happen",
                run_dir,
            )
        try:
            lock.acquire(timeout=0)
        except Timeout:
            host, _, pid = _read(owner).partition(" ")
            lock.acquire(timeout=WORKERS_GONE if host == socket.gethostname() and not _runs(pid) else 0)
        with replacing(owner, flush=False) as file:
            file.write(f"{socket.gethostname()} {os.getpid()}".encode())
    except Timeout:
        host, _, pid = _read(owner).partition(" ")
        raise UserError(
            f"run.dir={run_dir} is in use by process {pid} on {host}: stop that one first, or name another directory"
        ) from None
    except FlushError as error:
        raise ConfigError(
            f"run.dir={run_dir}: no checkpoint would be safe there ({error.strerror}); name another directory"
        ) from None
    except OSError as error:
        raise UserError(f"run.dir={run_dir}: cannot write there ({error.strerror})") from None
    return lock


def refuse_links(run_dir: Path) -> None:
    """Refuse a run directory that contains symbolic links, FIFOs, devices or sockets.

    A run directory may come from a stranger. If one of its files were a link, the run would change a file elsewhere; if
    it were a FIFO or a device, the run could wait for ever.

    Raises:
        UserError: there is one of them; the message names it.
    """
    for pattern in ("*", "samples/*", "checkpoints/*", "generated/*"):  # the places where a run writes
        for path in run_dir.glob(pattern):
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                raise UserError(f"{path} is a link; a run never makes links and does not write through them: remove it")
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise UserError(f"{path} is a FIFO, a device or a socket; a run makes only regular files: remove it")


def _read(owner: Path) -> str:
    """The content of the file `.owner`: host name, space, process id."""
    try:
        return read_file(owner, 1000).decode(errors="replace")
    except OSError:
        return "an unknown host ?"


def _runs(pid: str) -> bool:
    """Tell if there is a process with this id on this host."""
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
