"""Published data sets: read files in MNIST's IDX format, and the data sets that torchvision downloads."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gan_dist.data import Source
from gan_dist.data.folder import check_directory
from gan_dist.errors import UserError


def read_idx_files(source: Source) -> tuple[Tensor, Tensor] | None:
    """Read a data set in MNIST's format from IDX files, with or without gzip.

    The files are looked for in `source.root` and in the folder below it where torchvision puts them.

    Returns:
        Images uint8 (N, 1, H, W) and labels uint8 (N,); None if the files are not there.

    Raises:
        UserError: a file is damaged, or images and labels do not belong together.
    """
    for folder in (source.root, source.root / source.name / "raw"):
        found = [_find(folder, f"train-{part}-ubyte") for part in ("images-idx3", "labels-idx1")]
        if all(found):
            images, labels = (_read_idx(path) for path in found if path)
            if images.ndim != 3 or images.shape[:1] != labels.shape:
                raise UserError(f"{found[0]}: shape {images.shape} does not fit labels of shape {labels.shape}")
            return torch.from_numpy(images)[:, None], torch.from_numpy(labels)
    return None


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of bytes.

    The format is: two zero bytes, the type 8 (uint8), the number of dimensions, the sizes (big-endian int32), the data.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zero, kind, ndim = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{ndim}i", content, 4)
        if zero or kind != 8:
            raise ValueError("not an IDX file of bytes")
        return np.frombuffer(content, np.uint8, offset=4 + 4 * ndim).reshape(shape).copy()
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
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
        return getattr(torchvision.datasets, source.name)(source.root, download=True, **arguments)
    except Exception as error:  # network, archive and disk can cause errors of many types
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


def celeba_files(source: Source) -> list[tuple[Path, int]]:
    """Return the path of each image in CelebA's training split, with the label 0; download the data set if necessary.

    Raises:
        UserError: the files are not there and the download failed.
    """
    dataset = _open_torchvision(source, split="train")
    return [(source.root / "celeba" / "img_align_celeba" / name, 0) for name in dataset.filename]
