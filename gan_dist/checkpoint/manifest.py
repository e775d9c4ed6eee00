"""Read files of a checkpoint and check each of them against the `manifest.json` in the same directory.

The manifest lists the size and the SHA-256 of each file. A checkpoint may come from a stranger, so links, wrong sizes
and invalid JSON are all refused. A forged manifest can only make us load wrong weights; it cannot run code.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, BinaryIO, ParamSpec, TypeVar

from gan_dist.errors import Unreadable, UserError
from gan_dist.files import NotRegular, open_regular

P = ParamSpec("P")
T = TypeVar("T")

MAX_TEXT = 2**20  # largest size of a JSON or YAML file in bytes; the program writes files of about a thousand bytes

PAUSES = (0.1, 0.5, 2.0)  # seconds before each further try to read what cannot be read at the moment


def patient(read: Callable[P, T]) -> Callable[P, T]:
    """Let a function try again, after a pause, if it could not read a file.

    Network file systems give errors such as EIO and ESTALE that pass, and so does EMFILE. Such an error must not look
    like a damaged file. The last try raises its error.
    """

    @wraps(read)
    def tried(*arguments: P.args, **named: P.kwargs) -> T:
        for pause in PAUSES:
            try:
                return read(*arguments, **named)
            except Unreadable:
                time.sleep(pause)
        return read(*arguments, **named)

    return tried


@patient
def check_file(folder: Path, name: str) -> None:
    """Check a file of any size against the manifest, without loading the whole file into memory.

    Args:
        folder: the checkpoint's directory.
        name: the file's name in it.

    Raises:
        UserError: the file is missing, or its size or SHA-256 is not that of the manifest.
        Unreadable: the file could not be read, several times.
    """
    entry = _entry(folder, name)
    with _open(folder / name, entry["size"]) as file:
        _compare(folder / name, hashlib.file_digest(file, "sha256").hexdigest(), entry)  # type: ignore[arg-type]


@patient
def read_file(folder: Path, name: str, most: int = MAX_TEXT) -> bytes:
    """Return a file's content, checked against the manifest.

    Args:
        folder: the checkpoint's directory.
        name: the file's name in it.
        most: largest size to read, in bytes. A forged manifest can name any size.

    Raises:
        UserError: the file is missing or larger than `most`, or its size or SHA-256 is not that of the manifest.
    """
    entry = _entry(folder, name)
    with _open(folder / name, entry["size"], most) as file:
        try:
            content = file.read(most)
        except MemoryError:
            raise UserError(f"{folder / name}: {entry['size']} bytes are more than fit into memory") from None
    _compare(folder / name, hashlib.sha256(content).hexdigest(), entry)
    return content


@patient
def read_small(path: Path) -> bytes:
    """Return the content of a small file that no manifest lists.

    Raises:
        UserError: there is no such file, or it is larger than MAX_TEXT.
    """
    with _open(path, most=MAX_TEXT) as file:
        return file.read(MAX_TEXT)


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Return the object in a JSON file, checked against the manifest.

    Raises:
        UserError: see `read_file`; or the file does not hold a JSON object.
    """
    return _parse(folder / name, read_file(folder, name))


def _entry(folder: Path, name: str) -> dict[str, Any]:
    """The manifest's entry for a file: a dict with `size`, an int (checked here), and `sha256` (not checked)."""
    path = folder / "manifest.json"
    with _open(path, most=MAX_TEXT) as file:
        entry = _parse(path, file.read(MAX_TEXT)).get(name)
    if not isinstance(entry, dict) or not isinstance(entry.get("size"), int):
        raise UserError(f"{folder}: damaged: manifest.json does not list {name}")
    return entry


def _compare(path: Path, sha256: str, entry: dict[str, Any]) -> None:
    if sha256 != entry.get("sha256"):
        raise UserError(f"{path}: damaged: its SHA-256 is not that of manifest.json")


def _parse(path: Path, content: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged: not JSON ({type(error).__name__})") from error
    if not isinstance(parsed, dict):
        raise UserError(f"{path}: damaged: not a JSON object")
    return parsed


@contextmanager
def _open(path: Path, size: int | None = None, most: int | None = None) -> Iterator[BinaryIO]:
    """Open a regular file, but not through a link. Check that it has `size` bytes and at most `most`, if given."""
    try:
        with open_regular(path) as file:
            found = os.fstat(file.fileno()).st_size
            if size is not None and found != size:
                raise UserError(f"{path}: damaged: {found} bytes, not {size}")
            if most is not None and found > most:
                raise UserError(f"{path}: damaged: {found} bytes are more than {most}")
            yield file
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{path}: damaged: no such file") from error
    except NotRegular as error:
        raise UserError(f"{path}: damaged: {error.strerror}") from error
    except OSError as error:
        raise Unreadable(f"{path}: cannot be read ({error.strerror})") from error
