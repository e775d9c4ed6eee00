"""Read the text of a config file, which may come from a stranger, or be a pipe or a device in place of a file."""

from __future__ import annotations

import os
import select
import time
from pathlib import Path

from gan_dist.files import NotRegular, open_regular

MAX_FILE = 2**17  # largest size of a config in bytes; the ones in configs/ have some hundred
PIPE_SECONDS = 5  # a pipe must have ended by then


def read_text(path: Path, pipe: bool = False) -> str:
    """Return the text of a file of at most `MAX_FILE` bytes, which is UTF-8 whatever the locale is.

    Args:
        path: a regular file, or a link to one.
        pipe: the user named this path, so that it may be a pipe too, such as `<(command)` of a shell.

    Raises:
        OSError: the file cannot be opened or read.
        ValueError: it is another kind of file, too large, not UTF-8, or a pipe that does not end.
    """
    if pipe and path.is_fifo():
        content = _read_pipe(path)
    else:
        try:
            with open_regular(path, links=True) as file:
                content = file.read(MAX_FILE + 1)
        except NotRegular:
            raise ValueError("it is not a regular file") from None
    if len(content) > MAX_FILE:
        raise ValueError(f"a config has at most {MAX_FILE} bytes")
    return content.decode("utf-8-sig")


def _read_pipe(path: Path) -> bytes:
    """Read until the pipe's writers have closed it, or one byte more than is allowed."""
    # O_NONBLOCK: to open a pipe without a writer would wait for one.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        content, end = b"", time.monotonic() + PIPE_SECONDS
        while len(content) <= MAX_FILE:
            left = end - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                raise ValueError(f"this pipe has not ended within {PIPE_SECONDS} s")
            chunk = os.read(descriptor, MAX_FILE)
            if not chunk:
                break
            content += chunk
        return content
    finally:
        os.close(descriptor)
