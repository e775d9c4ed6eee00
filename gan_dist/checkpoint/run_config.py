"""The `config.yaml` of a run directory: its settings, and a record of the start that wrote the file.

The record is a comment in the file's second line, so the settings and the record cannot come apart. It holds the
SHA-256 of the lines below, by which a change by hand is noticed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from gan_dist.checkpoint import manifest
from gan_dist.errors import ConfigError, Unreadable, UserError
from gan_dist.files import replacing

_HEAD = "# Written by gan_dist. A change by hand counts at the next start, which says so.\n"
_RECORD = "# record "


@dataclass(frozen=True)
class Record:
    """What is recorded about the start that wrote a `config.yaml`.

    Attributes:
        starts_from: name of the checkpoint from which that start went on; "" for the beginning.
        file_sha256: SHA-256 of the settings in the config file of the run's first start; "" if there was none.
        num_images: number of images in the data set.
        data_key: the `gan_dist.data.key.data_key` of the data set.
    """

    starts_from: str = ""
    file_sha256: str = ""
    num_images: int = 0
    data_key: str = ""


def write_run_config(run_dir: Path, settings: str, record: Record) -> None:
    """Write the `config.yaml` of a run as a whole, flush it to disk, and only then replace the old one.

    Args:
        run_dir: the run directory.
        settings: all settings as YAML.
        record: what is recorded about this start.

    Raises:
        ConfigError: the file system cannot flush files to disk, so checkpoints would not be safe there.
        UserError: the file cannot be written.
    """
    path = run_dir / "config.yaml"
    entries = json.dumps({**asdict(record), "sha256": _hash(settings)})
    try:
        with replacing(path) as file:
            file.write(f"{_HEAD}{_RECORD}{entries}\n{settings}".encode())
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EIO, errno.ENOTSUP):
            raise ConfigError(
                f"run.dir={run_dir}: this disk cannot keep files safely (flushing {path.name}: {error.strerror}); "
                "name a directory on another disk"
            ) from None
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None


def read_run_config(run_dir: Path) -> tuple[str, Record | None]:
    """Read the `config.yaml` of a run.

    Returns:
        Its text, "" if there is no such file; and its record, None if it has none (an earlier version wrote the file)
        or if the settings are no longer those that were written.

    Raises:
        UserError: it is not a text file of the usual size.
        Unreadable: it could not be read, several times.
    """
    path = run_dir / "config.yaml"
    try:
        text = manifest.read_small(path).decode()
    except Unreadable:
        raise
    except UserError:
        if path.exists():
            raise
        return "", None
    except UnicodeDecodeError:
        raise UserError(f"{path}: damaged: not a text") from None
    return text, _record_of(text)


def was_changed(text: str) -> bool:
    """Tell if the text of a `config.yaml` was changed since the program wrote it: its record does not fit."""
    return _RECORD in text and _record_of(text) is None


def _record_of(text: str) -> Record | None:
    """The record in the text of a `config.yaml`, if the settings below it are those that were recorded."""
    _, found, rest = text.partition(f"{_HEAD}{_RECORD}")
    line, _, settings = rest.partition("\n")
    try:
        entries = json.loads(line) if found else {}
        sha256 = entries.pop("sha256")
        record = Record(**entries)
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return None
    pairs = zip(asdict(record).values(), asdict(Record()).values())
    valid = all(type(value) is type(default) for value, default in pairs)
    if not valid or not re.fullmatch("[0-9]{0,16}", record.starts_from) or sha256 != _hash(settings):
        return None
    return record


def _hash(settings: str) -> str:
    return hashlib.sha256(settings.encode()).hexdigest()
