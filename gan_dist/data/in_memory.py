"""Data sets whose images are decoded once and kept in memory, in host memory or on the GPU."""

from __future__ import annotations

import hashlib
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from gan_dist.data.folder import ImageFiles
from gan_dist.data.gone import check_present
from gan_dist.data.images import BrokenImage, read_image
from gan_dist.errors import UserError
from gan_dist.rng import to_device

log = logging.getLogger(__name__)


class ImageTensor(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """A decoded data set in memory: item i is (image, label).

    Attributes:
        images: uint8 (N, C, H, W), in host memory or on the GPU; points are floats (N, 2, 1, 1).
        labels: int64 (N,), on the same device.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Return a whole batch, as DataLoader requests it: images (N, C, H, W) and labels (N,)."""
        index = to_device(torch.tensor(indices), self.images.device)
        return self.images[index], self.labels[index]

    def on(self, device: torch.device) -> ImageTensor:
        """Copy the data set to a GPU if it takes at most a quarter of the free GPU memory; else return it unchanged."""
        if device.type != "cuda" or self.images.nbytes > torch.cuda.mem_get_info(device)[0] // 4:
            return self
        return ImageTensor(self.images.to(device), self.labels.to(device))


Images = ImageTensor | ImageFiles


def data_key(dataset: Images, num_classes: int) -> str:
    """Return 16 hexadecimal digits that identify the content of a data set.

    They are a hash of the number of images, the number of classes, and 64 evenly spaced images with their labels.
    """
    digest = hashlib.sha256(f"{len(dataset)} {num_classes}".encode())
    images, labels = dataset.__getitems__([i * len(dataset) // 64 for i in range(64)])
    if not images.is_floating_point():  # points are left out: their last bits differ between processors
        digest.update(images.cpu().numpy().tobytes())
    digest.update(labels.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def decode_all(files: ImageFiles) -> ImageTensor:
    """Decode all files of a data set and keep the images in memory.

    Args:
        files: the data set. If `files.skip_broken` is True, files that cannot be read are left out, with a warning.

    Raises:
        UserError: a file cannot be read and `files.skip_broken` is False, or no file can be read.
    """
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
    """Decode all files of a data set without keeping the images, and return how many can be read.

    Raises:
        UserError: a file cannot be read and `files.skip_broken` is False.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return sum(pool.map(lambda item: _read_file(files, item[0]) is not None, files.files))


def _read_file(files: ImageFiles, path: Path) -> Tensor | None:
    try:
        return read_image(path, files.image_shape)
    except BrokenImage as error:
        check_present(files.files, error)
        if not files.skip_broken:
            raise UserError(f"{error}; remove it, or set data.broken_files=skip") from error
        log.warning("skipped %s", error)
        return None
