"""List the image files of a directory, and say what is left out and why."""

from __future__ import annotations

import logging
import os
import stat
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from gan_dist.data import DataInfo
from gan_dist.data.files import UNKNOWN, FileList
from gan_dist.data.images import FORMATS
from gan_dist.errors import ConfigError, UserError

log = logging.getLogger(__name__)

SHOWN = 20  # so many classes are listed with their number of images
_PARTS = ("train", "training", "val", "valid", "validation", "eval", "test", "testing")  # names of parts of a data set


def check_directory(root: Path) -> None:
    """Raise a UserError if `root` is a file, for example an archive that was not unpacked."""
    if root.exists() and not root.is_dir():
        raise UserError(
            f"data.root={root} is a file; if it is an archive, unpack it, and name the directory of its files"
        )


def list_images(root: Path, class_folders: bool) -> tuple[FileList, tuple[str, ...]]:
    """List all image files below `root`, in a fixed order that depends on their names only.

    Links are followed. What is left out is said in one warning for each reason: hidden files and folders, files with an
    unknown ending, classes without images, files beside the class folders, and what is neither file nor folder.

    Args:
        root: the directory.
        class_folders: each subfolder of `root` is a class. The classes are numbered in the order of their names, or of
            the numbers if all names are numbers. If False, every label is 0 and there are no classes.

    Returns:
        The files, and the names of the classes.

    Raises:
        UserError: there is no such directory, a folder in it cannot be read, or there is no image in it.
        ConfigError: `class_folders` is True, but there are no subfolders.
    """
    check_directory(root)
    if not root.is_dir():
        raise UserError(f"data.root={root}: no such directory")
    listing = _Listing(root)
    if class_folders:
        files, classes = listing.classes()
    else:
        files, classes = FileList.of((name, 0, size) for name, size in listing.files(root)), []
    listing.say(classes)
    if not len(files):
        endings = ", ".join(sorted(listing.endings)[:8])
        raise UserError(f"data.root={root}: no images in it (looked for {endings}, …)")
    return files, tuple(classes)


def describe_classes(info: DataInfo) -> str:
    """Return one line: the names of the classes, each with its number of images."""
    labels = info.labels if info.files is None else info.files.labels
    assert labels is not None
    counts = np.bincount(labels, minlength=info.num_classes).tolist()
    shown = [f"{name} ({count})" for name, count in zip(info.class_names[:SHOWN], counts)]
    rest = counts[SHOWN:]
    more = f", and {len(rest)} more with {min(rest)} to {max(rest)} images each" if rest else ""
    return f"{len(counts)} classes with their numbers of images: {', '.join(shown)}{more}"


def by_number_or_name(names: Sequence[str]) -> list[str]:
    """Sort names of classes: as numbers if all of them consist of ASCII digits, else as text."""
    if all(name.isascii() and name.isdigit() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


class _Listing:
    """Walks through a directory, and counts what it leaves out.

    Attributes:
        endings: the endings of the names of image files.
        left_out: for each reason the number of files or folders that are left out, and the first of them.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.endings = {ending for ending, name in Image.registered_extensions().items() if name in FORMATS}
        self.left_out: dict[str, tuple[int, str]] = defaultdict(lambda: (0, ""))
        self.parts: list[str] = []

    def classes(self) -> tuple[FileList, list[str]]:
        """List the class folders; returns the files, and the names of the classes that have images."""
        folders = []
        for entry in self._entries(str(self.root)):
            if _is_folder(entry):
                folders.append(entry.name)
            else:
                self._leave_out("files beside the class folders", entry.path)
        if not folders:
            raise ConfigError(
                f"data.class_folders=true: {self.root} has no subfolders; "
                "set data.class_folders=false for images without labels"
            )
        classes: list[str] = []

        def files() -> Iterator[tuple[str, int, int]]:
            for name in by_number_or_name(folders):
                found = False
                for path, size in self.files(self.root / name):
                    yield path, len(classes), size
                    found = True
                if found:
                    classes.append(name)
                else:
                    self._leave_out("class folders without images", str(self.root / name))

        return FileList.of(files()), classes

    def files(self, start: Path) -> Iterator[tuple[str, int]]:
        """Yield the path relative to the root, and the size, of each image file below a folder."""
        known = [os.path.realpath(start)]  # folders whose whole content is listed
        waiting = [str(start)]
        while waiting:
            subfolders = []
            for entry in self._entries(waiting.pop()):
                if _is_folder(entry):
                    if not entry.is_symlink() or self._is_new(entry.path, known):
                        subfolders.append(entry.path)
                elif os.path.splitext(entry.name)[1].lower() not in self.endings:  # noqa: PTH122  # quicker than Path
                    self._leave_out("files with an unknown ending", entry.path)
                elif (size := _size(entry)) is None:
                    self._leave_out("pipes, sockets and devices", entry.path)
                else:
                    yield os.path.relpath(entry.path, self.root), size
            waiting += reversed(subfolders)

    def _is_new(self, link: str, known: list[str]) -> bool:
        """Tell if a link leads to a folder that has to be listed, and add the folder to `known`.

        A folder that is listed anyway, or that contains a listed folder, would give the same images twice, or for ever.
        """
        target = os.path.realpath(link)
        if any(os.path.commonpath([target, folder]) in (target, folder) for folder in known):
            self._leave_out("links to folders whose images are listed anyway", link)
            return False
        known.append(target)
        return True

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        """Return what is in a folder, sorted by name, without what is hidden."""
        try:
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(
                f"{folder}: cannot be read ({error.strerror}); allow it, or move this folder out of data.root"
            ) from error
        for entry in entries:
            if entry.name.startswith("."):
                self._leave_out("hidden files and folders", entry.path)
        visible = [entry for entry in entries if not entry.name.startswith(".")]
        if folder == str(self.root):
            self.parts = [entry.name for entry in visible if entry.name.lower() in _PARTS and _is_folder(entry)]
        return visible

    def _leave_out(self, reason: str, path: str) -> None:
        count, first = self.left_out[reason]
        self.left_out[reason] = count + 1, first or os.path.relpath(path, self.root)

    def say(self, classes: list[str]) -> None:
        """Say what was left out, and what is probably not meant."""
        for reason, (count, first) in self.left_out.items():
            log.warning("data.root=%s: left out %d %s, for example %s", self.root, count, reason, first)
        if len(self.parts) > 1:
            taken = "classes" if classes else "one data set"
            log.warning(
                "data.root=%s: %s look like parts of a data set, and are taken as %s; to use one of them, set %s",
                self.root, " and ".join(self.parts), taken, f"data.root={self.root / self.parts[0]}",
            )  # fmt: skip
        alike: dict[str, list[str]] = defaultdict(list)
        for name in classes:
            alike[unicodedata.normalize("NFKC", name).strip().casefold()].append(name)
        for names in alike.values():
            if len(names) > 1:
                shown = " and ".join(ascii(name) for name in names)
                log.warning("data.root=%s: the classes %s look alike; rename them if they are one", self.root, shown)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # for example a link that leads to itself
        return False


def _size(entry: os.DirEntry[str]) -> int | None:
    """Return the size of a file, UNKNOWN if it cannot be read, or None if it is no regular file."""
    try:
        status = entry.stat()
    except OSError:
        return UNKNOWN  # reading the image will fail, and then it is counted as unreadable
    return status.st_size if stat.S_ISREG(status.st_mode) else None
