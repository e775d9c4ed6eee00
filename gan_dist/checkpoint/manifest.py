"""Files that are what a `manifest.json` beside them says: name -> size and SHA-256. Nothing is believed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from gan_dist.errors import UserError

MAX_TEXT = 2**20  # bytes of a JSON or YAML file; ours have a thousand


def check_file(folder: Path, name: str) -> None:
    """Compare a file of any size with the manifest, piece by piece.

    Raises:
        UserError: it is missing or not what was written.
    """
    entry = _entry(folder, name)
    with _open(folder / name, entry["size"]) as file:
        _compare(folder / name, hashlib.file_digest(file, "sha256").hexdigest(), entry)  # type: ignore[arg-type]


def read_file(folder: Path, name: str, most: int = MAX_TEXT) -> bytes:
    """A file's content, which is what the manifest says: that may be a stranger's, but not of more than `most` bytes.

    Raises:
        UserError: it is missing, not what was written, or larger.
    """
    entry = _entry(folder, name)
    with _open(folder / name, entry["size"], most) as file:
        try:
            content = file.read(most)
        except MemoryError:
            raise UserError(f"{folder / name}: {entry['size']} bytes are more than there is memory") from None
    _compare(folder / name, hashlib.sha256(content).hexdigest(), entry)
    return content


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Likewise the object in a JSON file."""
    return _parse(folder / name, read_file(folder, name))


def _entry(folder: Path, name: str) -> dict[str, Any]:
    path = folder / "manifest.json"
    with _open(path, most=MAX_TEXT) as file:
        entry = _parse(path, file.read(MAX_TEXT)).get(name)
    if not isinstance(entry, dict) or not isinstance(entry.get("size"), int):
        raise UserError(f"{folder}: damaged: manifest.json does not list {name}")
    return entry


def _compare(path: Path, sha256: str, entry: dict[str, Any]) -> None:
    if sha256 != entry.get("sha256"):
        raise UserError(f"{path}: damaged: its content is not what was written")


def _parse(path: Path, content: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged: not JSON ({type(error).__name__})") from error
    if not isinstance(parsed, dict):
        raise UserError(f"{path}: damaged: not what a checkpoint has there")
    return parsed


@contextmanager
def _open(path: Path, size: int | None = None, most: int | None = None) -> Iterator[BinaryIO]:
    """A regular file, not one behind a link; of this size, and at most that, if they are given."""
    try:
        if path.is_symlink() or not path.is_file():
            raise UserError(f"{path}: damaged: {'a link' if path.is_symlink() else 'no such file'}")
        with path.open("rb") as file:
            found = os.fstat(file.fileno()).st_size
            if size is not None and found != size:
                raise UserError(f"{path}: damaged: {found} bytes, not {size}")
            if most is not None and found > most:
                raise UserError(f"{path}: damaged: {found} bytes are more than {most}")
            yield file
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
