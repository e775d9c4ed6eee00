"""Data sets whose images are decoded once and kept in memory, in host memory or on the GPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gan_dist.data.folder import ImageFiles, in_threads
from gan_dist.data.from_python import GivenImages
from gan_dist.data.stand_in import stand_ins
from gan_dist.errors import UserError


class ImageTensor(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """A decoded data set in memory: item i is (image, label).

    Attributes:
        images: uint8 (N, C, H, W), in host memory or on the GPU; points are floats (N, 2, 1, 1). An image that could
            not be read is black, and another one stands in for it.
        labels: int64 (N,), on the same device.
        unreadable: the numbers of the images that could not be read, sorted.
        files: the files that were decoded; None if the images come from somewhere else, or from another process.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, unreadable: Sequence[int] = (), files: ImageFiles | None = None
    ) -> None:
        self.images, self.labels, self.files = images, labels, files
        self.unreadable = list(unreadable)
        self._unreadable = frozenset(unreadable)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Return a whole batch: images (N, C, H, W) and labels (N,)."""
        return self.fetch(_to_device(torch.tensor(indices), self.images.device), indices, seed=0)

    def fetch(self, indices: Tensor, numbers: Sequence[int], seed: int) -> tuple[Tensor, Tensor]:
        """Return images (N, C, H, W) and labels (N,); see `gan_dist.data.folder.ImageFiles.fetch`."""
        if self._unreadable:
            n, good = len(self), lambda i: i not in self._unreadable
            kept = [
                i if good(i) else next(filter(good, stand_ins(seed, number, n)))
                for i, number in zip(indices.tolist(), numbers)
            ]
            indices = _to_device(torch.tensor(kept), self.images.device)
        return self.images[indices], self.labels[indices]

    def readable(self, indices: Sequence[int]) -> tuple[list[int], Tensor]:
        """Return those of the indices whose images could be read, and their images (M, C, H, W)."""
        kept = [i for i in indices if i not in self._unreadable]
        return kept, self.images[_to_device(torch.tensor(kept, dtype=torch.int64), self.images.device)]

    def count_readable(self) -> int:
        """Return the number of images that could be read."""
        return len(self) - len(self.unreadable)

    def with_images(self, images: Tensor) -> ImageTensor:
        """Return the data set with other images of the same number, for example smaller ones."""
        return ImageTensor(images, self.labels.to(images.device), self.unreadable, self.files)

    def on(self, device: torch.device) -> ImageTensor:
        """Copy the data set to a GPU if it takes at most a quarter of the free GPU memory; else return it unchanged."""
        if device.type != "cuda" or self.images.nbytes > torch.cuda.mem_get_info(device)[0] // 4:
            return self
        return self.with_images(self.images.to(device))


Images = ImageTensor | ImageFiles | GivenImages


def decode_all(files: ImageFiles) -> ImageTensor:
    """Decode all files of a data set and keep the images in memory. All images keep their numbers.

    Raises:
        UserError: a file cannot be read and `files.skip_broken` is False, or no file can be read.
    """
    images = torch.zeros(len(files), *files.image_shape, dtype=torch.uint8)

    def read(part: Sequence[int]) -> list[bool]:
        found = [files.read(i) for i in part]
        for i, image in zip(part, found):
            if image is not None:
                images[i] = image
        return [image is not None for image in found]

    if not any(in_threads(read, range(len(files)))):
        raise UserError(f"none of the {len(files)} images can be read; {files.why(0)}")
    return ImageTensor(images, files.labels, files.unreadable, files)


def _to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to a device. The host does not wait for a copy to a GPU."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
