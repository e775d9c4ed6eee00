"""Write files so that they are whole and on disk, even if the machine loses power."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def write_flushed(path: Path, content: bytes) -> None:
    """Write a file, and wait until its content is on disk.

    Raises:
        OSError: it could not be written.
    """
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def flush_names(folder: Path) -> bool:
    """Wait until the names in a directory are on disk, so that they survive a crash of the machine.

    Returns:
        False if the file system cannot do this, as FUSE and CIFS often cannot. Nothing else is wrong then.

    Raises:
        OSError: the file system can do this, but it failed.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
        return False
    finally:
        os.close(descriptor)
    return True


def replace_file(path: Path, content: bytes) -> bool:
    """Write a file under a temporary name, flush it, and then rename it: a crash leaves the old file or the new one.

    Returns:
        What `flush_names` returns for the directory.

    Raises:
        OSError: it could not be written. The old file is kept.
    """
    temporary = path.with_suffix(".tmp")
    try:
        write_flushed(temporary, content)
        temporary.rename(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return flush_names(path.parent)
