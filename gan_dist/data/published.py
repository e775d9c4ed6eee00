"""Published data sets: read files in MNIST's IDX format, and the data sets that torchvision downloads."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from gan_dist.data import Source
from gan_dist.data.files import FileList, size_of
from gan_dist.data.listing import check_directory
from gan_dist.errors import UserError


def read_idx_files(source: Source) -> tuple[Tensor, Tensor] | None:
    """Read a data set in MNIST's format from IDX files, with or without gzip.

    The files are looked for in `source.root` and in the folder below it where torchvision puts them.

    Returns:
        Images uint8 (N, 1, H, W) and labels uint8 (N,); None if the files are not there.

    Raises:
        UserError: a file is damaged, or images and labels do not belong together.
    """
    found = _find(source)
    if found is None:
        return None
    images, labels = (_read_idx(path) for path in found)
    if images.ndim != 3 or images.shape[:1] != labels.shape:
        raise UserError(f"{found[0]}: shape {images.shape} does not fit labels of shape {labels.shape}")
    return torch.from_numpy(images)[:, None], torch.from_numpy(labels)


def count_idx_images(source: Source) -> int | None:
    """Return the number of images that the header of an IDX file claims; None if the file is not there or damaged."""
    found = _find(source)
    if found is None:
        return None
    try:
        with _open_idx(found[0]) as file:
            return _read_shape(file)[0] or None
    except (OSError, EOFError, ValueError, struct.error, zlib.error):
        return None  # `read_idx_files` says what is wrong


def _find(source: Source) -> tuple[Path, Path] | None:
    """Return the files of images and labels; `train-images.idx3-ubyte` is another usual spelling."""
    for folder in (source.root, source.root / source.name / "raw"):
        found = []
        for stem, kind in (("train-images", "idx3-ubyte"), ("train-labels", "idx1-ubyte")):
            names = [f"{stem}{dot}{kind}{gz}" for dot in "-." for gz in ("", ".gz")]
            found += [path for name in names if (path := folder / name).is_file()][:1]
        if len(found) == 2:
            return found[0], found[1]
    return None


def _open_idx(path: Path) -> BinaryIO | gzip.GzipFile:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _read_shape(file: BinaryIO | gzip.GzipFile) -> tuple[int, ...]:
    """Read the header of an IDX file of bytes: two zero bytes, the type 8 (uint8), the number of dimensions, the sizes.

    The sizes are big-endian int32.
    """
    zero, kind, ndim = struct.unpack(">HBB", file.read(4))
    if zero or kind != 8 or not ndim:
        raise ValueError("not an IDX file of bytes")
    shape: tuple[int, ...] = struct.unpack(f">{ndim}i", file.read(4 * ndim))
    if min(shape) < 0:
        raise ValueError(f"its header claims the shape {shape}")
    return shape


def _read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of bytes: the header and the data, and nothing behind them."""
    try:
        with _open_idx(path) as file:
            shape = _read_shape(file)
            size = math.prod(shape)
            content = file.read(size + 1)  # no more, because a small gzip file can hold very many bytes
        if len(content) != size:
            raise ValueError(f"its data are not of the shape {shape}")
        return np.frombuffer(content, np.uint8).reshape(shape).copy()
    except (OSError, EOFError, ValueError, OverflowError, MemoryError, struct.error, zlib.error) as error:
        raise UserError(f"{path}: damaged IDX file ({error}); fetch it again") from error


# The files that the user can put into data.root if torchvision cannot download them.
_FILES = {
    "MNIST": "MNIST/raw/train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz",
    "FashionMNIST": "FashionMNIST/raw/train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz",
    "KMNIST": "KMNIST/raw/train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz",
    "CIFAR10": "cifar-10-python.tar.gz",
    "CIFAR100": "cifar-100-python.tar.gz",
    "SVHN": "train_32x32.mat",
    "STL10": "stl10_binary.tar.gz",
    "CelebA": "celeba/img_align_celeba.zip and the celeba/*.txt files of its annotations",
}


def _open_torchvision(source: Source, **arguments: Any) -> Any:
    import torchvision

    check_directory(source.root)
    try:
        return getattr(torchvision.datasets, source.name)(source.root, download=source.download, **arguments)
    except Exception as error:  # network, archive and disk can cause errors of many types
        if not source.download:
            raise UserError(
                f"data.name={source.name}: not below data.root={source.root}, and data.download=false, as where only a "
                f"config file names a directory elsewhere: put {_FILES[source.name]} into {source.root}, or set "
                "data.download=true on the command line"
            ) from error
        there = source.root / _FILES[source.name].split()[0]
        found = f"{there} is damaged" if there.exists() else f"not below data.root={source.root}"
        raise UserError(
            f"data.name={source.name}: {found}, and the download failed "
            f"({type(error).__name__}: {' '.join(str(error).split())[:120]}); "
            f"put {_FILES[source.name]} into {source.root}"
        ) from error


def read_torchvision(source: Source) -> tuple[Tensor, Any]:
    """Read the training split of one of torchvision's data sets, and download it if necessary.

    Returns:
        Images uint8 (N, C, H, W), and the labels (N,) as a list, an array or a tensor; zeros for STL10's unlabelled
        images.

    Raises:
        UserError: the files are not there and the download failed.
    """
    arguments: dict[str, Any] = {"train": True}
    if source.name in ("SVHN", "STL10"):
        arguments = {"split": "unlabeled" if source.name == "STL10" else "train"}
    dataset = _open_torchvision(source, **arguments)
    images = torch.as_tensor(np.asarray(dataset.data))
    labels = dataset.labels if source.name in ("SVHN", "STL10") else dataset.targets
    if source.name.startswith("CIFAR"):
        images = images.permute(0, 3, 1, 2).contiguous()
    elif images.ndim == 3:
        images = images[:, None]
    return images, np.zeros(len(images)) if source.name == "STL10" else labels


def celeba_files(source: Source) -> FileList:
    """Return the images of CelebA's training split, each with the label 0; download the data set if necessary.

    Raises:
        UserError: the files are not there and the download failed.
    """
    dataset = _open_torchvision(source, split="train")
    names = [f"celeba/img_align_celeba/{name}" for name in dataset.filename]
    return FileList.of((name, 0, size_of(source.root / name)) for name in names)
