"""All data sets: the properties of each, and the function that loads it.

To add a data set, write a function that loads it and add a row to `DATASETS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gan_dist.data import DataInfo, Source
from gan_dist.data.files import FileList
from gan_dist.data.folder import ImageFiles
from gan_dist.data.from_python import PYTHON, GivenImages, check_map_style, describe_given
from gan_dist.data.images import fit
from gan_dist.data.in_memory import Images, ImageTensor, decode_all
from gan_dist.data.listing import list_images
from gan_dist.data.points import NUM_POINTS, make_points
from gan_dist.data.published import celeba_files, count_idx_images, read_idx_files, read_torchvision
from gan_dist.data.stacked import NUM_STACKED, stack
from gan_dist.errors import ConfigError, UserError
from gan_dist.parts import Table


@dataclass(frozen=True)
class DataSet:
    """One data set.

    Attributes:
        info: its properties; for "folder" only the default image shape, because the rest depends on the directory. What
            stands here for "python" is replaced by the properties of what is given.
        load: the function that loads it.
    """

    info: DataInfo
    load: Callable[[Source, DataInfo], Images]


def describe(source: Source) -> DataInfo:
    """Return the properties of a data set, without loading it. For "folder" the directory is listed.

    Of a data set from Python, the first item is taken; all of them, if nothing else tells their labels.

    Files in MNIST's format say how many images they hold; other data sets have as many as were published.

    Args:
        source: the data set and the conversion of its images; `source.name` must be a key of `DATASETS`.

    Raises:
        ConfigError: the data set does not allow `class_folders` or `stacked`; or it is "python", and none was given, or
            one of another kind: see `gan_dist.data.from_python.describe_given`.
        UserError: for "folder", the directory does not exist or contains no images; for "python", an item is no image.
    """
    data_set = _row(source.name)
    own = data_set.info
    if source.name == "folder":
        files, classes = list_images(source.root, source.class_folders)
        own = replace(own, num_classes=len(classes), num_images=len(files), files=files, class_names=classes)
    elif source.class_folders:
        raise ConfigError(f"data.class_folders=true needs data.name=folder, not data.name={source.name}")
    elif data_set.load is _python:
        own = describe_given(source.dataset)
    elif data_set.load is _idx and (count := count_idx_images(source)):
        own = replace(own, num_images=count)
    channels, height, width = own.image_shape
    if source.stacked:
        if channels != 1 or not own.num_classes or source.channels or data_set.load is _python:
            raise ConfigError(
                f"data.stacked=true needs grayscale images with labels, as of FashionMNIST, not data.name={source.name}"
                + (f" with data.channels={source.channels}" if source.channels else "")
            )
        own, channels = replace(own, num_classes=own.num_classes**3, num_images=NUM_STACKED), 3
    height, width = source.image_size or (height, width)
    return replace(own, image_shape=(source.channels or channels, height, width))


def load_dataset(source: Source, info: DataInfo) -> Images:
    """Load a data set. It is decoded into memory if it takes at most `source.memory` bytes there.

    Args:
        source: the data set and the conversion of its images.
        info: what `describe` returned for it.

    Raises:
        UserError: files are missing and cannot be downloaded, or an image is broken and `source.skip_broken` is False.
    """
    return _row(source.name).load(source, info)


def _row(name: str) -> DataSet:
    """The row of the table. A data set that a user has registered is one from Python, whatever its name."""
    return _OWN.get(name, _OWN[PYTHON])


def of_files(name: str) -> bool:
    """Tell if a data set consists of image files, which are read when they are needed if memory is short."""
    return _row(name).load in (_folder, _celeba)


def is_from_python(name: str) -> bool:
    """Tell if the items of a data set come from an object in Python, which makes them when they are needed."""
    return _row(name).load is _python


def _points(source: Source, _: DataInfo) -> ImageTensor:
    return ImageTensor(*make_points(source.name))


def _digits(source: Source, info: DataInfo) -> ImageTensor:
    """Handwritten digits of 8x8 pixels (Alpaydin & Kaynak 1998), which scikit-learn includes.

    Their 17 gray levels 0 … 16 are scaled to 0 … 255.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8))[:, None]
    return _in_memory(images, digits.target, source, info)


def _idx(source: Source, info: DataInfo) -> ImageTensor:
    """MNIST, and the data sets that have its format."""
    images, labels = read_idx_files(source) or read_torchvision(source)
    return _in_memory(images, labels, source, info)


def _torchvision(source: Source, info: DataInfo) -> ImageTensor:
    return _in_memory(*read_torchvision(source), source, info)


def _folder(source: Source, info: DataInfo) -> Images:
    assert info.files is not None
    return _files(info.files, source, info)


def _celeba(source: Source, info: DataInfo) -> Images:
    return _files(celeba_files(source), source, info)


def _files(files: FileList, source: Source, info: DataInfo) -> Images:
    dataset = ImageFiles(source.root, files, info.image_shape, source.skip_broken)
    size = len(files) * int(np.prod(info.image_shape))
    return decode_all(dataset) if size <= source.memory else dataset


def _python(source: Source, info: DataInfo) -> GivenImages:
    check_map_style(source.dataset)  # `describe` saw that of the main process
    return GivenImages(source.dataset, info.image_shape, info.labels)


def _in_memory(images: Tensor, labels: Any, source: Source, info: DataInfo) -> ImageTensor:
    """Make a data set in memory from decoded images: stack them if requested, then crop and resize them.

    Args:
        images: uint8 (N, C, H, W) in the data set's own shape.
        labels: their labels (N,).

    Raises:
        UserError: a label is none of the classes of the data set.
    """
    labels = torch.as_tensor(labels, dtype=torch.int64)
    num_classes = _row(source.name).info.num_classes
    if num_classes and not (labels.min() >= 0 and labels.max() < num_classes):
        raise UserError(
            f"data.name={source.name} has the labels 0 to {num_classes - 1}, but data.root={source.root} holds "
            f"labels from {labels.min()} to {labels.max()}: these are other data; data.name=folder takes any classes"
        )
    if source.stacked:
        images = _fit(images, (1, *info.image_shape[1:]))
        images, labels = stack(images, labels, num_classes)
    return ImageTensor(_fit(images, info.image_shape), labels)


def _fit(images: Tensor, image_shape: tuple[int, int, int]) -> Tensor:
    """Crop and resize images uint8 (N, C, H, W) to `image_shape`; return them unchanged if they have it already."""
    if tuple(images.shape[1:]) == image_shape:
        return images
    fitted = torch.empty(len(images), *image_shape, dtype=torch.uint8)
    for i, image in enumerate(images):
        fitted[i] = fit(image, image_shape)
    return fitted


# The valid values of `data.name`. A data set that a user has registered is a function `make(root, *, arguments)`, which
# returns what `gan_dist.data.from_python.describe_given` takes. The others are training splits, except STL10: GANs
# usually train on its unlabelled split.
_OWN = {
    "digits": DataSet(DataInfo((1, 8, 8), 10, 1797), _digits),
    "folder": DataSet(DataInfo((3, 64, 64), 0, 0), _folder),
    PYTHON: DataSet(DataInfo((3, 64, 64), 0, 0), _python),
    "ring": DataSet(DataInfo((2, 1, 1), 8, NUM_POINTS), _points),
    "grid": DataSet(DataInfo((2, 1, 1), 25, NUM_POINTS), _points),
    "MNIST": DataSet(DataInfo((1, 28, 28), 10, 60_000), _idx),
    "FashionMNIST": DataSet(DataInfo((1, 28, 28), 10, 60_000), _idx),
    "KMNIST": DataSet(DataInfo((1, 28, 28), 10, 60_000), _idx),
    "CIFAR10": DataSet(DataInfo((3, 32, 32), 10, 50_000), _torchvision),
    "CIFAR100": DataSet(DataInfo((3, 32, 32), 100, 50_000), _torchvision),
    "SVHN": DataSet(DataInfo((3, 32, 32), 10, 73_257), _torchvision),
    "STL10": DataSet(DataInfo((3, 96, 96), 0, 100_000), _torchvision),
    "CelebA": DataSet(DataInfo((3, 218, 178), 0, 162_770), _celeba),
}
DATASETS = Table("dataset", _OWN)
