"""The data sets there are: what each is like, and how it is read. A new one is a function and a row of `DATASETS`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gan_dist.data import DataInfo, Source
from gan_dist.data.folder import ImageFiles, list_images
from gan_dist.data.images import to_tensor
from gan_dist.data.in_memory import Images, ImageTensor, decode_all
from gan_dist.data.points import NUM_POINTS, make_points
from gan_dist.data.published import celeba_files, read_idx_files, read_torchvision
from gan_dist.data.stacked import NUM_STACKED, stack
from gan_dist.errors import ConfigError


@dataclass(frozen=True)
class DataSet:
    """One data set.

    Attributes:
        info: what it is like; of the set "folder", which is listed first, only the size that is taken by default.
        load: reads it.
    """

    info: DataInfo
    load: Callable[[Source, DataInfo], Images]


def describe(source: Source) -> DataInfo:
    """Image shape, classes and number of images of a data set; reads at most the listing of a directory.

    Raises:
        ConfigError: there is something asked for that the data set can't have.
        UserError: the folder is missing, or holds no images.
    """
    own = DATASETS[source.name].info
    if source.name == "folder":
        files, classes = list_images(source.root, source.class_folders)
        own = replace(own, num_classes=len(classes), num_images=len(files), files=tuple(files))
    elif source.class_folders:
        raise ConfigError(f"data.class_folders=true needs data.name=folder, not data.name={source.name}")
    channels, height, width = own.image_shape
    if source.stacked:
        if channels != 1 or not own.num_classes or source.channels:
            raise ConfigError(
                f"data.stacked=true needs grayscale images with labels, as of FashionMNIST, not data.name={source.name}"
                + (f" with data.channels={source.channels}" if source.channels else "")
            )
        own, channels = replace(own, num_classes=own.num_classes**3, num_images=NUM_STACKED), 3
    height, width = source.image_size or (height, width)
    return replace(own, image_shape=(source.channels or channels, height, width))


def load_dataset(source: Source, info: DataInfo) -> Images:
    """Read a data set: into memory if its decoded images fit into `source.memory`, else file by file.

    Raises:
        UserError: files are missing and can't be downloaded, or an image is broken and broken ones are not skipped.
    """
    return DATASETS[source.name].load(source, info)


def _points(source: Source, _: DataInfo) -> ImageTensor:
    return ImageTensor(*make_points(source.name))


def _digits(source: Source, info: DataInfo) -> ImageTensor:
    """Handwritten digits of 8x8 pixels (Alpaydin & Kaynak 1998), inside scikit-learn; gray levels 0 to 16."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8))[:, None]
    return _in_memory(images, digits.target, source, info)


def _idx(source: Source, info: DataInfo) -> ImageTensor:
    """MNIST and the sets that have its format."""
    images, labels = read_idx_files(source) or read_torchvision(source)
    return _in_memory(images, labels, source, info)


def _torchvision(source: Source, info: DataInfo) -> ImageTensor:
    return _in_memory(*read_torchvision(source), source, info)


def _folder(source: Source, info: DataInfo) -> Images:
    return _files(info.files, source, info)


def _celeba(source: Source, info: DataInfo) -> Images:
    return _files(celeba_files(source), source, info)


def _files(files: Sequence[tuple[Path, int]], source: Source, info: DataInfo) -> Images:
    dataset = ImageFiles(list(files), info.image_shape, source.skip_broken)
    size = len(files) * int(np.prod(info.image_shape))
    return decode_all(dataset) if size <= source.memory else dataset


def _in_memory(images: Tensor, labels: Any, source: Source, info: DataInfo) -> ImageTensor:
    """Decoded images (N, C, H, W) of the set's own shape, stacked if that is asked for, and cropped and resized."""
    labels = torch.as_tensor(labels, dtype=torch.int64)
    if source.stacked:
        images = _fit(images, (1, *info.image_shape[1:]))
        images, labels = stack(images, labels, round(info.num_classes ** (1 / 3)))
    return ImageTensor(_fit(images, info.image_shape), labels)


def _fit(images: Tensor, image_shape: tuple[int, int, int]) -> Tensor:
    """Crop and resize images (N, C, H, W) to the wanted shape, if they have another one."""
    if tuple(images.shape[1:]) == image_shape:
        return images
    fitted = torch.empty(len(images), *image_shape, dtype=torch.uint8)
    for i, image in enumerate(images):
        fitted[i] = to_tensor(Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy()), image_shape)
    return fitted


# The training split of each; of STL10 its unlabelled part, as usual for GANs.
DATASETS = {
    "digits": DataSet(DataInfo((1, 8, 8), 10, 1797), _digits),
    "folder": DataSet(DataInfo((3, 64, 64), 0, 0), _folder),
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
