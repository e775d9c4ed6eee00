"""Data sets whose images are decoded once and kept in memory, and decoding the files of one that is a folder."""

from __future__ import annotations

import hashlib
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from gan_dist.data.folder import ImageFiles
from gan_dist.data.images import BrokenImage, read_image
from gan_dist.errors import UserError
from gan_dist.rng import to_device

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
