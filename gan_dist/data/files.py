"""A list of image files that stays small: a few arrays, however many files there are."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

UNKNOWN = -1  # the size of a file whose size cannot be read, for example of a link that leads nowhere


@dataclass(frozen=True, eq=False)
class FileList:
    """The names, labels and sizes of the image files of a data set.

    A million paths as Python objects would take hundreds of MB in each process, and minutes to send to all of them.

    Attributes:
        names: the paths of all files relative to the root of the data set, one behind the other: uint8.
        ends: where each path ends in `names`, int64 (N,).
        labels: int64 (N,).
        sizes: size of each file in bytes, int64 (N,); UNKNOWN if it cannot be read.
    """

    names: np.ndarray
    ends: np.ndarray
    labels: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, files: Iterable[tuple[str, int, int]]) -> FileList:
        """Make a list of (path relative to the root, label, size)."""
        names, ends, labels, sizes = bytearray(), array("q"), array("q"), array("q")
        for name, label, size in files:
            names += os.fsencode(name)
            ends.append(len(names))
            labels.append(label)
            sizes.append(size)
        return cls(np.frombuffer(names, np.uint8), *(np.frombuffer(a, np.int64) for a in (ends, labels, sizes)))

    def __len__(self) -> int:
        return len(self.ends)

    def name(self, i: int) -> str:
        """Return the path of file i, relative to the root."""
        start = self.ends[i - 1] if i else 0
        return os.fsdecode(self.names[start : self.ends[i]].tobytes())

    def with_sizes_below(self, root: Path) -> FileList:
        """Return the list with the sizes that the files have below `root`, which may be another copy of the data."""
        return FileList.of((self.name(i), label, size_of(root / self.name(i))) for i, label in enumerate(self.labels))

    def in_order(self, new_labels: np.ndarray) -> FileList:
        """Return the list with other numbers of the classes, sorted by them; the order within a class stays.

        Args:
            new_labels: the new number of each class, (num_classes,).
        """
        labels = new_labels[self.labels]
        order = np.argsort(labels, kind="stable").tolist()
        return FileList.of((self.name(i), labels[i], self.sizes[i]) for i in order)


def size_of(path: Path) -> int:
    """Return the size of a file in bytes; UNKNOWN if it cannot be read."""
    try:
        return path.stat().st_size
    except OSError:
        return UNKNOWN
