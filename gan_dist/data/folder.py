"""Image files as a data set: each file is decoded when it is needed."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from gan_dist.data.files import FileList
from gan_dist.data.gone import check_present
from gan_dist.data.images import BrokenImage, Picture, read_image
from gan_dist.data.stand_in import stand_ins
from gan_dist.errors import UserError

T = TypeVar("T")

READ, UNREADABLE, SEVERAL, DEEP, BRIGHT = 1, 2, 4, 8, 16  # what is noted about an image; see `ImageFiles.notes`
PROBES = 16  # so many files are looked for to tell if the folder is gone
CHUNK = 16  # images that a thread decodes one after the other


class ImageFiles(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """A data set that decodes image files when they are needed: item i is (uint8 (C, H, W), label).

    All images keep their numbers, also if some of them cannot be read. Another image then stands in for these.

    Attributes:
        root: the directory to which the names in `files` are relative.
        files: the files, with their labels.
        image_shape: (C, H, W) to which each image is converted.
        skip_broken: let other images stand in for those that cannot be read, instead of raising an error.
        notes: what is known about each image, uint8 (N,): a sum of READ; UNREADABLE; SEVERAL, further pictures in the
            file; DEEP, 16 bits for each sample; and BRIGHT, a sample is larger than 1/8 of the range. The DataLoader's
            workers, which are forks of this process, write into the same memory.

    Raises:
        DataGoneError: on access, if the whole folder is gone.
        UserError: on access, if a file cannot be read and `skip_broken` is False, or if no file can be read.
    """

    def __init__(
        self,
        root: Path,
        files: FileList,
        image_shape: tuple[int, int, int],
        skip_broken: bool,
        notes: np.ndarray | None = None,
    ) -> None:
        self.root, self.files, self.image_shape, self.skip_broken = root, files, image_shape, skip_broken
        self.notes = np.frombuffer(mmap.mmap(-1, len(files)), np.uint8) if notes is None else notes

    @property
    def labels(self) -> Tensor:
        """The labels of all images, also of those that cannot be read, int64 (N,)."""
        return torch.from_numpy(self.files.labels.copy())

    @property
    def unreadable(self) -> list[int]:
        """The numbers of the images that are known to be unreadable, sorted."""
        return np.flatnonzero(self.notes & UNREADABLE).tolist()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._fetch(index, stand_ins(0, index, len(self)))

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Return a whole batch: images uint8 (N, C, H, W) and labels int64 (N,)."""
        return self.fetch(torch.tensor(indices), indices, seed=0)

    def fetch(self, indices: Tensor, numbers: Sequence[int], seed: int) -> tuple[Tensor, Tensor]:
        """Return images uint8 (N, C, H, W) and labels int64 (N,); others stand in for unreadable ones.

        Args:
            indices: the numbers of the images in the data set, int64 (N,).
            numbers: their numbers in the run, on which it depends which images stand in.
            seed: the seed of the run.
        """
        images, labels = zip(
            *(self._fetch(i, stand_ins(seed, n, len(self))) for i, n in zip(indices.tolist(), numbers))
        )
        return torch.stack(images), torch.tensor(labels)

    def _fetch(self, index: int, others: Iterator[int]) -> tuple[Tensor, int]:
        for i in chain([index], others):
            if (image := self.read(i)) is not None:
                return image, int(self.files.labels[i])
        raise UserError(f"none of the {len(self)} images can be read; {self.why(index)}")

    def readable(self, indices: Sequence[int]) -> tuple[list[int], Tensor]:
        """Decode images with several threads, and leave out those that cannot be read.

        Returns:
            The indices of the others, and their images uint8 (M, C, H, W).
        """
        images = self._read_all(indices)
        kept = [i for i, image in zip(indices, images) if image is not None]
        found = [image for image in images if image is not None]
        return kept, torch.stack(found) if found else torch.empty(0, *self.image_shape, dtype=torch.uint8)

    def _read_all(self, indices: Sequence[int]) -> list[Tensor | None]:
        return in_threads(lambda part: [self.read(i) for i in part], indices)

    def count_readable(self) -> int:
        """Decode all images without keeping them, and return how many can be read."""
        return sum(in_threads(lambda part: [self.read(i) is not None for i in part], range(len(self))))

    def read(self, index: int) -> Tensor | None:
        """Decode one image; None if it cannot be read, now or when it was tried before."""
        if self.notes[index] & UNREADABLE:
            return None
        try:
            picture = read_image(self.path(index), self.image_shape)
        except BrokenImage as error:
            check_present(self.probes(), error)
            if not self.skip_broken:
                raise UserError(f"{error}; remove it, or set data.broken_files=skip") from error
            self.notes[index] |= READ | UNREADABLE
            return None
        self.notes[index] |= _note(picture)
        return picture.pixels

    def probes(self) -> Iterator[Path]:
        """Yield PROBES files, evenly spaced in the data set. If none of them is there, the folder is gone."""
        return (self.path(i) for i in range(0, len(self), max(1, len(self) // PROBES)))

    def path(self, index: int) -> Path:
        """Return the path of a file."""
        return self.root / self.files.name(index)

    def why(self, index: int) -> str:
        """Read a file that could not be read again, and return in words what is wrong with it."""
        try:
            read_image(self.path(index), self.image_shape)
        except BrokenImage as error:
            return str(error)
        return f"{self.path(index)}: could not be read, but can be read now"

    def resized(self, image_shape: tuple[int, int, int]) -> ImageFiles:
        """Return the same files with images of another size. Both share what is noted about the files."""
        return ImageFiles(self.root, self.files, image_shape, self.skip_broken, self.notes)


def _note(picture: Picture) -> int:
    return READ | SEVERAL * picture.several | DEEP * picture.deep | BRIGHT * (not picture.dark)


def in_threads(work: Callable[[Sequence[int]], Iterable[T]], indices: Sequence[int]) -> list[T]:
    """Call `work` for parts of `indices` in several threads, and join the results in the order of the indices."""
    parts = [indices[i : i + CHUNK] for i in range(0, len(indices), CHUNK)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(chain.from_iterable(pool.map(work, parts)))
