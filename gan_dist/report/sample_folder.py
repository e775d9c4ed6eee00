"""Folders of samples. The images of one folder have the same origin: one checkpoint, seed and choice of classes."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from gan_dist.errors import ConfigError, UserError

ORIGIN = "gan_dist"  # the text in each PNG file that says where the image comes from


@contextmanager
def replaced_folder(folder: Path, origin: str) -> Iterator[Path]:
    """Give an empty folder to write images to, which takes the place of `folder` when all images are written.

    After an error `folder` is as it was.

    Args:
        folder: its final name.
        origin: the origin of the images, which `gan_dist.report.pictures` writes into them.

    Raises:
        ConfigError: `folder` is no folder, holds files other than images of this origin, or is the current directory.
        UserError: the images cannot be written.
    """
    refuse_other_files(folder, origin)
    token = secrets.token_hex(4)
    new, old = (folder.with_name(f".{folder.name}-{token}-{kind}") for kind in ("new", "old"))
    try:
        new.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"{folder}: no folder to write to ({error.strerror}); name another one by --out") from error
    try:
        yield new
        if folder.exists():
            refuse_other_files(folder, origin)
            folder.rename(old)
        new.rename(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot write there ({error.strerror or error})") from error
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        for path in (new, old):
            shutil.rmtree(path, ignore_errors=True)


def refuse_other_files(folder: Path, origin: str) -> None:
    """Raise ConfigError if a folder cannot be replaced by one with images of `origin`; see `replaced_folder`."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder; name another one by --out")
    if Path.cwd().is_relative_to(folder.resolve()):
        raise ConfigError(f"{folder} is the current directory, and the folder of the images is replaced as a whole")
    for path in sorted(folder.iterdir()):
        if _origin_of(path) != origin:
            raise ConfigError(
                f"{folder} holds other files, for example {path.name}, which are not images of {origin}: "
                "name another folder by --out, or remove them"
            )


def _origin_of(path: Path) -> str | None:
    """Return the origin of an image; None if the file is no PNG image or says nothing about it."""
    if path.suffix != ".png" or path.is_symlink() or not path.is_file():
        return None
    try:
        with Image.open(path, formats=("PNG",)) as image:
            return image.info.get(ORIGIN)
    except Exception:  # Pillow's decoder raises errors of many types
        return None
