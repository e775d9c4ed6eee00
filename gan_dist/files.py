"""Open and write the files of a run and of the caches.

They may come from a stranger. A FIFO or a device in the place of a file could let the program wait for ever or read
without end, so only regular files are opened. They may also be shared with a backup that was made of hard links
(`cp -al`), so a file is never changed through one of several names: it is written anew and renamed.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

# The flags that an operating system lacks are left out. O_NONBLOCK: opening a FIFO does not wait for its other end.
_SAFE = sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)


class NotRegular(OSError):
    """A path is a link, or leads to a directory, a FIFO, a device or a socket."""


class FlushError(OSError):
    """The file system cannot flush a file to disk, although there is space."""


def open_regular(path: Path, most: int | None = None, links: bool = False) -> BufferedReader:
    """Open a regular file to read it. The open file is checked, so it cannot be exchanged after the check.

    Args:
        path: the file.
        most: largest size of the file in bytes; None for any size.
        links: follow a symbolic link.

    Raises:
        OSError: the file cannot be opened, or is larger than `most`; `NotRegular` if it is no regular file.
    """
    file = open(_open(path, os.O_RDONLY | (0 if links else _NO_LINK)), "rb")  # noqa: SIM115
    size = os.fstat(file.fileno()).st_size
    if most is not None and size > most:
        file.close()
        raise OSError(errno.EFBIG, f"{size} bytes are more than {most}", str(path))
    return file


def read_file(path: Path, most: int, links: bool = False) -> bytes:
    """Return the content of a regular file.

    Args:
        path, most, links: see `open_regular`.

    Raises:
        OSError: see `open_regular`.
    """
    with open_regular(path, most, links) as file:
        return file.read(most)


def open_to_append(path: Path) -> BinaryIO:
    """Open a regular file to add to its end, and make it if there is none. A file with several names is copied first.

    Raises:
        OSError: the file cannot be opened or copied; `NotRegular` if it is no regular file.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | _NO_LINK
    descriptor = _open(path, flags)
    if os.fstat(descriptor).st_nlink > 1:
        os.close(descriptor)
        with open_regular(path) as shared, replacing(path, flush=False) as own:
            shutil.copyfileobj(shared, own)
        descriptor = _open(path, flags)
    return os.fdopen(descriptor, "ab")


@contextmanager
def replacing(path: Path, flush: bool = True) -> Iterator[BinaryIO]:
    """Write a file under another name, and give it its own name when it is complete.

    A crash or an error leaves the old file as it was. What had the name before, such as a FIFO, a link or a file with
    several names, is replaced and not written to.

    Args:
        path: the file to write.
        flush: also flush the file and its name to disk, so that they survive a crash of the machine.

    Yields:
        the file to write to.

    Raises:
        OSError: the file cannot be written; `FlushError` if it cannot be flushed.
    """
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            if flush:
                flush_file(file)
        temporary.replace(path)
        if flush:
            flush_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def flush_file(file: BinaryIO) -> None:
    """Flush what was written to a file to disk.

    Raises:
        OSError: there is no space; `FlushError` for any other reason.
    """
    file.flush()
    _flush(file.fileno(), str(file.name))


def flush_folder(folder: Path) -> bool:
    """Flush a directory to disk, so that the names in it survive a crash of the machine.

    Returns:
        False if the file system cannot flush directories, as some of FUSE and of Windows shares. Files that were
        written just before a crash may then be missing after it.

    Raises:
        FlushError: the directory cannot be flushed for another reason.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _flush(descriptor, str(folder))
    except FlushError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
        return False
    finally:
        os.close(descriptor)
    return True


def check_disk(folder: Path) -> bool:
    """Write a small file into a directory, flush it, and delete it.

    Returns:
        False if the file system cannot flush directories; see `flush_folder`.

    Raises:
        OSError: a file cannot be written there; `FlushError` if it cannot be flushed.
    """
    probe = folder / f".probe-{secrets.token_hex(4)}"
    try:
        with replacing(probe) as file:
            file.write(b"probe\n")
    finally:
        probe.unlink(missing_ok=True)
    return flush_folder(folder)


def _open(path: Path, flags: int) -> int:
    """Open a regular file, and return its descriptor."""
    try:
        descriptor = os.open(path, flags | _SAFE, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # ENXIO: a socket, or a FIFO that nobody reads
            what = "a link" if error.errno == errno.ELOOP else "not a regular file"
            raise NotRegular(error.errno, what, str(path)) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotRegular(errno.EINVAL, "not a regular file", str(path))
    return descriptor


def _flush(descriptor: int, name: str) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        kind = OSError if error.errno in (errno.ENOSPC, errno.EDQUOT) else FlushError
        raise kind(error.errno, f"flushing to disk: {error.strerror}", name) from None
