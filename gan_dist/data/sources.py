"""Reading the configured data set."""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gan_dist.data import POINTS, DataInfo
from gan_dist.data.folder import ImageFiles
from gan_dist.data.images import BrokenImage, read_image, to_tensor
from gan_dist.data.points import make_points
from gan_dist.data.stacked import stack
from gan_dist.errors import UserError
from gan_dist.rng import to_device
from gan_dist.settings.schema import Data

log = logging.getLogger(__name__)


class ImageTensor(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """A decoded data set: images uint8 (N, C, H, W) and labels int64 (N,), in memory or on the GPU."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """A whole batch at once, as DataLoader's fetcher asks for it."""
        index = to_device(torch.tensor(indices), self.images.device)
        return self.images[index], self.labels[index]

    def on(self, device: torch.device) -> ImageTensor:
        """The same on a GPU, if it fits there and leaves three quarters of the free memory to training."""
        if device.type != "cuda" or self.images.nbytes > torch.cuda.mem_get_info(device)[0] // 4:
            return self
        return ImageTensor(self.images.to(device), self.labels.to(device))


Images = ImageTensor | ImageFiles


def load_dataset(config: Data, info: DataInfo) -> Images:
    """Read the data set: in memory if its decoded images fit in `data.memory_gib`, else file by file.

    Raises:
        UserError: files are missing and can't be downloaded, or an image is broken and `data.broken_files=error`.
    """
    if config.name in POINTS:
        return ImageTensor(*make_points(config.name))
    if config.name == "digits":
        arrays = _digits()
    elif config.name in ("MNIST", "FashionMNIST", "KMNIST"):
        arrays = _idx(config) or _torchvision(config)
    elif config.name in ("folder", "CelebA"):
        files = list(info.files) if config.name == "folder" else _celeba(config)
        dataset = ImageFiles(files, info.image_shape, config.broken_files == "skip")
        size = len(files) * int(np.prod(info.image_shape))
        return decode_all(dataset) if size <= config.memory_gib * 2**30 else dataset
    else:
        arrays = _torchvision(config)
    images, labels = arrays[0], torch.as_tensor(arrays[1], dtype=torch.int64)
    if config.stacked:
        images, labels = stack(_fit(images, (1, *info.image_shape[1:])), labels, round(info.num_classes ** (1 / 3)))
    return ImageTensor(_fit(images, info.image_shape), labels)


def data_key(dataset: Images, num_classes: int) -> str:
    """A short name for the content of a data set: a hash of its size and of 64 of its images, evenly spaced."""
    digest = hashlib.sha256(f"{len(dataset)} {num_classes}".encode())
    images, labels = dataset.__getitems__([i * len(dataset) // 64 for i in range(64)])
    if not images.is_floating_point():  # points are computed, and their last bit is the processor's
        digest.update(images.cpu().numpy().tobytes())
    digest.update(labels.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def decode_all(files: ImageFiles) -> ImageTensor:
    """Decode every file once; unreadable ones are left out and counted, or an error, as `files.skip_broken` says."""
    images = torch.empty(len(files.files), *files.image_shape, dtype=torch.uint8)

    def read(i: int) -> bool:
        image = _read_file(files, files.files[i][0])
        if image is not None:
            images[i] = image
        return image is not None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        good = list(pool.map(read, range(len(images))))
    if not any(good):
        raise UserError(f"none of the {len(good)} images can be read")
    labels = torch.tensor([label for _, label in files.files])
    if not all(good):
        log.warning("%d of %d images could not be read and were skipped", good.count(False), len(good))
        images, labels = images[good], labels[good]
    return ImageTensor(images, labels)


def count_readable(files: ImageFiles) -> int:
    """Decode every file once and keep none; unreadable ones are logged, or an error, as `files.skip_broken` says."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return sum(pool.map(lambda item: _read_file(files, item[0]) is not None, files.files))


def _read_file(files: ImageFiles, path: Path) -> Tensor | None:
    try:
        return read_image(path, files.image_shape)
    except BrokenImage as error:
        if not files.skip_broken:
            raise UserError(f"{error}; remove it, or set data.broken_files=skip") from error
        log.warning("skipped %s", error)
        return None


def _fit(images: Tensor, image_shape: tuple[int, int, int]) -> Tensor:
    """Crop and resize a decoded set (N, C, H, W) to the wanted shape, if it has another."""
    if tuple(images.shape[1:]) == image_shape:
        return images
    fitted = torch.empty(len(images), *image_shape, dtype=torch.uint8)
    for i, image in enumerate(images):
        fitted[i] = to_tensor(Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy()), image_shape)
    return fitted


def _digits() -> tuple[Tensor, Any]:
    """Handwritten digits of 8x8 pixels (Alpaydin & Kaynak 1998), inside scikit-learn; gray levels 0 to 16."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8))[:, None], digits.target


def _idx(config: Data) -> tuple[Tensor, Tensor] | None:
    """MNIST and its likes from their IDX files, packed or not, in `data.root` or where torchvision puts them."""
    for folder in (Path(config.root), Path(config.root) / config.name / "raw"):
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
    """The IDX format: two zero bytes, type 8 (uint8), number of dimensions, their sizes as big-endian int32, data."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zero, kind, ndim = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{ndim}i", content, 4)
        if zero or kind != 8:
            raise ValueError("not an IDX file of bytes")
        return np.frombuffer(content, np.uint8, offset=4 + 4 * ndim).reshape(shape).copy()
    except (OSError, EOFError, ValueError, struct.error) as error:
        raise UserError(f"{path}: damaged IDX file ({error}); fetch it again") from error


# What torchvision looks for below data.root when nothing can be downloaded.
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


def _open_torchvision(config: Data, **arguments: Any) -> Any:
    import torchvision

    try:
        return getattr(torchvision.datasets, config.name)(config.root, download=True, **arguments)
    except Exception as error:  # whatever the network, the archive or the disk did
        raise UserError(
            f"data.name={config.name}: not below data.root={config.root}, and the download failed "
            f"({type(error).__name__}: {' '.join(str(error).split())[:120]}); "
            f"put {_FILES[config.name]} into {config.root}"
        ) from error


def _torchvision(config: Data) -> tuple[Tensor, Any]:
    """The training split of one of torchvision's data sets: images uint8 (N, C, H, W) and labels."""
    arguments: dict[str, Any] = {"train": True}
    if config.name in ("SVHN", "STL10"):
        arguments = {"split": "unlabeled" if config.name == "STL10" else "train"}
    dataset = _open_torchvision(config, **arguments)
    images = torch.as_tensor(np.asarray(dataset.data))
    labels = dataset.labels if config.name in ("SVHN", "STL10") else dataset.targets
    if config.name.startswith("CIFAR"):
        images = images.permute(0, 3, 1, 2).contiguous()
    elif images.ndim == 3:
        images = images[:, None]
    return images, np.zeros(len(images)) if config.name == "STL10" else labels


def _celeba(config: Data) -> list[tuple[Path, int]]:
    dataset = _open_torchvision(config, split="train")
    return [(Path(config.root) / "celeba" / "img_align_celeba" / name, 0) for name in dataset.filename]
