"""A data set that was given from Python as `dataset=`: each item is taken from it when it is needed.

Its items may be random, because of transforms. So the global generators of torch, NumPy and Python are seeded before
each item is taken, with a function of the seed and of the number of the image in the run.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from gan_dist.data import DataInfo
from gan_dist.data.images import BrokenImage, fit, shape_of
from gan_dist.data.items import MISSING, NotAnItem, read_item
from gan_dist.errors import ConfigError, UserError
from gan_dist.rng import Purpose, global_generators

log = logging.getLogger(__name__)

PYTHON = "python"  # the value of `data.name`
MOST_CLASSES = 2**16  # a label above this is a mistake, such as an identifier
FIXED = 0  # the seed of items that are to be the same in every run: item i is then the image number i


class GivenImages(Dataset[tuple[Tensor, Tensor]]):
    """A data set from Python, with images of one shape: item i is (uint8 (C, H, W), label).

    Args:
        dataset: the data set, which `describe_given` has accepted.
        image_shape: (C, H, W) to which each image is converted.
        labels: the labels of all items, int64 (N,); None if they have none.

    Attributes:
        dataset, image_shape: as in `Args`.
        labels: as in `Args`; zeros if the items have none.
        unreadable: no number, because an item that cannot be taken ends the run.
        files: None, because this class knows no files.

    Raises:
        UserError: on access, if an item cannot be taken, or is no image, or has another label than in `labels`.
    """

    unreadable: Sequence[int] = ()
    files = None

    def __init__(self, dataset: Any, image_shape: tuple[int, int, int], labels: Tensor | None) -> None:
        self.dataset, self.image_shape = dataset, image_shape
        self.labels = torch.zeros(len(dataset), dtype=torch.int64) if labels is None else labels
        self._labelled = labels is not None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Return images uint8 (N, C, H, W) and labels int64 (N,), the same ones each time."""
        return self.fetch(torch.tensor(indices), indices, FIXED)

    def fetch(self, indices: Tensor, numbers: Sequence[int], seed: int) -> tuple[Tensor, Tensor]:
        """Return images uint8 (N, C, H, W) and labels int64 (N,).

        Args:
            indices: the numbers of the items in the data set, int64 (N,).
            numbers: their numbers in the run. What a random transform draws depends on them and on the seed only.
            seed: the seed of the run.
        """
        images = []
        with global_generators() as seed_all:
            for i, number in zip(indices.tolist(), numbers):
                seed_all(seed, Purpose.ITEM, number)
                images.append(self._image(i))
        return torch.stack(images), self.labels[indices]

    def _image(self, index: int) -> Tensor:
        image, label = _take(self.dataset, index)
        if self._labelled and label != self.labels[index]:
            raise UserError(
                f"dataset[{index}] has the label {label}, but had {self.labels[index]} when the labels were read; the "
                "label of an item must not change"
            )
        with _named(index):
            return fit(image, self.image_shape)

    def readable(self, indices: Sequence[int]) -> tuple[list[int], Tensor]:
        """Return the indices, and their images uint8 (N, C, H, W), the same ones each time."""
        if not len(indices):
            return [], torch.empty(0, *self.image_shape, dtype=torch.uint8)
        return list(indices), self.__getitems__(list(indices))[0]

    def count_readable(self) -> int:
        """Return the number of items."""
        return len(self.labels)

    def resized(self, image_shape: tuple[int, int, int]) -> GivenImages:
        """Return the same data set with images of another size."""
        return GivenImages(self.dataset, image_shape, self.labels if self._labelled else None)

    def without_transforms(self) -> GivenImages:
        """Return the images, without labels, as they are before the transforms of the data set.

        These are its attributes `transform` and `transforms`, as torchvision names them. The data set itself is
        returned if it has none, or if its items cannot be used without them.
        """
        there = [name for name in ("transform", "transforms") if getattr(self.dataset, name, None) is not None]
        if not there:
            return self
        try:
            bare = copy.copy(self.dataset)
            for name in there:
                setattr(bare, name, None)
            images = GivenImages(bare, self.image_shape, None)
            images.readable([0])
        except Exception:  # the code is a user's, and need not allow that these attributes are None
            return self
        return images

    @property
    def key(self) -> str:
        """The key that the data set gives itself by an attribute `key`; "" if it has no such text."""
        key = getattr(self.dataset, "key", "")
        return key if isinstance(key, str) else ""


def describe_given(dataset: Any) -> DataInfo:
    """Return the properties of a data set from Python. Its image shape is that of item 0.

    The labels are those of an attribute `targets` or `labels` of the data set. Without one, every item is taken once to
    know them. The number of classes is the length of an attribute `classes`, which names them; without it, 1 more than
    the largest label.

    Args:
        dataset: an object with a length and with items by number, as `gan_dist.data.items.read_item` takes them; or
            None if none was given.

    Raises:
        ConfigError: there is no data set; or it has no length, no items by number or no items at all.
        UserError: an item cannot be taken or used, or only some of them have labels.
    """
    check_map_style(dataset)
    with global_generators() as seed_all:
        seed_all(FIXED, Purpose.ITEM, 0)
        image, label = _take(dataset, 0)
    with _named(0):
        shape = shape_of(image)
    labels = None if label is None else _labels(dataset, label)
    if labels is None:
        return DataInfo(shape, 0, len(dataset))
    classes = getattr(dataset, "classes", None)
    names = tuple(map(str, classes)) if isinstance(classes, list | tuple) else ()
    largest = int(labels.max())
    if names and largest >= len(names):
        raise UserError(
            f"dataset[{int(labels.argmax())}] has the label {largest}, but dataset.classes has {len(names)} names; it "
            "must name every class, from label 0 on"
        )
    return DataInfo(shape, len(names) or largest + 1, len(dataset), class_names=names, labels=labels)


def check_map_style(dataset: Any) -> None:
    """Raise ConfigError if an object is no data set with a length and with items by number."""
    if dataset is None:
        raise ConfigError(
            f"data.name={PYTHON} is a data set that is given from Python: to start, resume or measure such a run, call "
            "train or evaluate there with dataset=; on the command line, set another data.name"
        )
    kind, instead = type(dataset).__name__, "a map-style data set, which has __len__ and __getitem__"
    if isinstance(dataset, IterableDataset):
        raise ConfigError(
            f"dataset={kind} is an IterableDataset, whose order cannot be that of the run's seed, nor be resumed; "
            f"give {instead}"
        )
    try:
        count = len(dataset) if hasattr(type(dataset), "__getitem__") else -1
    except (TypeError, NotImplementedError):
        count = -1
    if count < 0:
        raise ConfigError(f"dataset={kind} has no length or no items by number; give {instead}")
    if count == 0:
        raise ConfigError(f"dataset={kind} is empty; give {instead}, and at least one item")


def _labels(dataset: Any, first: int) -> Tensor | None:
    """Return the labels of all items, int64 (N,); None if all of them are missing.

    Args:
        dataset: the data set.
        first: the label of item 0.
    """
    labels = _listed_labels(dataset)
    if labels is None or labels[0] != first:
        log.info("taking each of the %d items once for its label: the data set has no list `targets`", len(dataset))
        labels = _read_labels(dataset)
    missing = labels == MISSING
    if missing.all():
        log.warning("all labels of the data set are -1 or None: its images count as images without labels")
        return None
    if missing.any():
        without, with_one = (int(these.nonzero()[0]) for these in (missing, ~missing))
        raise UserError(
            f"dataset[{without}] has no label (-1 or None), but dataset[{with_one}] has one; give every item a label, "
            "or return images alone"
        )
    if labels.max() >= MOST_CLASSES:
        raise UserError(
            f"dataset[{int(labels.argmax())}] has the label {int(labels.max())}, which is no number of a class; number "
            f"the classes from 0 on, at most {MOST_CLASSES:,}"
        )
    return labels


def _read_labels(dataset: Any) -> Tensor:
    """Take each item once, and return the labels, int64 (N,)."""
    found = []
    with global_generators() as seed_all:
        for i in range(len(dataset)):
            seed_all(FIXED, Purpose.ITEM, i)
            label = _take(dataset, i)[1]
            found.append(MISSING if label is None else label)
    return torch.tensor(found, dtype=torch.int64)


def _listed_labels(dataset: Any) -> Tensor | None:
    """Return the labels that the data set lists in an attribute, as those of torchvision do, int64 (N,); else None."""
    if getattr(dataset, "target_transform", None) is not None:  # the list has the labels before it
        return None
    for name in ("targets", "labels"):
        try:
            listed = np.asarray(getattr(dataset, name, None))
        except Exception:  # it is something of the user's own
            continue
        if listed.shape == (len(dataset),) and listed.dtype.kind in "iu" and listed.min() >= MISSING:
            return torch.from_numpy(listed.astype(np.int64))
    return None


def _take(dataset: Any, index: int) -> tuple[Image.Image | Tensor, int | None]:
    """Take an item from the data set; returns its image and its label, see `gan_dist.data.items.read_item`."""
    with _named(index):
        return read_item(dataset[index])


@contextmanager
def _named(index: int) -> Iterator[None]:
    """A context in which every error becomes a UserError that names the item."""
    try:
        yield
    except (NotAnItem, BrokenImage) as error:
        raise UserError(f"dataset[{index}]: {error}") from None
    except Exception as error:  # the code is a user's
        raise UserError(f"dataset[{index}] failed: {type(error).__name__}: {error}") from error
