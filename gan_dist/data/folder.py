"""A directory of images: listing it, and reading it file by file."""

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


def list_images(root: Path, class_folders: bool) -> tuple[list[tuple[Path, int]], list[str]]:
    """All image files below `root`, sorted by name, each with its label, and the names of the classes.

    Without `class_folders` every label is 0 and there are no classes; with it, the sorted subfolders of `root` are.

    Raises:
        UserError: no such directory, or no images in it.
    """
    if not root.is_dir():
        raise UserError(f"data.root={root}: no such directory")
    extensions = {extension for extension, name in Image.registered_extensions().items() if name in FORMATS}
    classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir()) if class_folders else []
    if class_folders and not classes:
        raise ConfigError(f"data.class_folders=true: {root} has no subfolders; false takes it as one unlabelled set")
    files = []
    for label, start in enumerate([root / name for name in classes] or [root]):
        for folder, subfolders, names in os.walk(start):
            subfolders.sort()
            files += [(Path(folder, n), label) for n in sorted(names) if Path(n).suffix.lower() in extensions]
    if not files:
        raise UserError(f"data.root={root}: no images in it (looked for {', '.join(sorted(extensions)[:8])}, …)")
    return files, classes


class ImageFiles(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Files decoded when they are asked for: item i is (uint8 (C, H, W), label).

    With `skip_broken`, the next readable file stands in for an unreadable one, so that the numbering stays.
    """

    def __init__(self, files: list[tuple[Path, int]], image_shape: tuple[int, int, int], skip_broken: bool) -> None:
        self.files = files
        self.image_shape = image_shape
        self.skip_broken = skip_broken

    @property
    def labels(self) -> Tensor:
        """int64 (N,)."""
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
                log.warning("%s; the next file stands in for it", error)
        raise UserError(f"none of the {len(self.files)} images can be read")

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """A whole batch, as DataLoader's fetcher asks for it: uint8 (N, C, H, W), int64 (N,)."""
        images, labels = zip(*(self[i] for i in indices))
        return torch.stack(images), torch.tensor(labels)
