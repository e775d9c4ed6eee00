"""A directory of images as a data set: list its files, and decode each file when it is needed."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from gan_dist.data.images import FORMATS, BrokenImage, read_image
from gan_dist.errors import ConfigError, UserError

log = logging.getLogger(__name__)


def check_directory(root: Path) -> None:
    """Raise a UserError if `root` is a file, for example an archive that was not unpacked."""
    if root.exists() and not root.is_dir():
        raise UserError(
            f"data.root={root} is a file; if it is an archive, unpack it, and name the directory of its files"
        )


def list_images(root: Path, class_folders: bool) -> tuple[list[tuple[Path, int]], list[str]]:
    """List all image files below `root`, in a fixed order that depends on their names only.

    Args:
        root: the directory.
        class_folders: each subfolder of `root` is a class, numbered in the order of the names. If False, every label
            is 0 and there are no classes.

    Returns:
        (path, label) of each file, and the names of the classes.

    Raises:
        UserError: there is no such directory, or no image in it.
        ConfigError: `class_folders` is True, but there are no subfolders.
    """
    check_directory(root)
    if not root.is_dir():
        raise UserError(f"data.root={root}: no such directory")
    extensions = {extension for extension, name in Image.registered_extensions().items() if name in FORMATS}
    classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir()) if class_folders else []
    if class_folders and not classes:
        raise ConfigError(
            f"data.class_folders=true: {root} has no subfolders; set data.class_folders=false for images without labels"
        )
    files = []
    for label, start in enumerate([root / name for name in classes] or [root]):
        for folder, subfolders, names in os.walk(start):
            subfolders.sort()
            files += [(Path(folder, n), label) for n in sorted(names) if Path(n).suffix.lower() in extensions]
    if not files:
        raise UserError(f"data.root={root}: no images in it (looked for {', '.join(sorted(extensions)[:8])}, …)")
    return files, classes


class ImageFiles(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """A data set that decodes image files when they are needed: item i is (uint8 (C, H, W), label).

    Args:
        files: (path, label) of each image.
        image_shape: (C, H, W) to which each image is converted.
        skip_broken: if a file cannot be read, return the next readable file in its place, with a warning. The other
            images keep their numbers.

    Raises:
        UserError: on access, if a file cannot be read and `skip_broken` is False, or if no file can be read.
    """

    def __init__(self, files: list[tuple[Path, int]], image_shape: tuple[int, int, int], skip_broken: bool) -> None:
        self.files = files
        self.image_shape = image_shape
        self.skip_broken = skip_broken

    @property
    def labels(self) -> Tensor:
        """The labels of all images, int64 (N,)."""
        return torch.tensor([label for _, label in self.files])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        for offset in range(len(self.files)):
            path, label = self.files[(index + offset) % len(self.files)]
            try:
                return read_image(path, self.image_shape), label
            except BrokenImage as error:
                if not self.skip_broken:
                    raise UserError(f"{error}; remove it, or set data.broken_files=skip") from error
                log.warning("%s; the next file is used in its place", error)
        raise UserError(f"none of the {len(self.files)} images can be read")

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Return a whole batch, as DataLoader requests it: images uint8 (N, C, H, W) and labels int64 (N,)."""
        images, labels = zip(*(self[i] for i in indices))
        return torch.stack(images), torch.tensor(labels)
