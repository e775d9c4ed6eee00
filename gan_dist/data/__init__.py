"""Data sets: what they are before anything is read (`describe`), reading them (`sources`), and the
stream of batches (`loader`).

Images are uint8 (C, H, W) and labels int64 until they are on the device.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from gan_dist.errors import ConfigError
from gan_dist.settings.config import parse_image_size
from gan_dist.settings.schema import Data


@dataclass(frozen=True)
class DataInfo:
    """What a data set is like, known without decoding an image.

    Attributes:
        image_shape: (C, H, W).
        num_classes: number of labels; 0 if the data set has none.
        num_images: images in the training split.
        files: of a folder, the images and their labels.
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    num_images: int
    files: tuple[tuple[Path, int], ...] = ()


POINTS = ("ring", "grid")  # toy data: points of the plane
NUM_STACKED = 100_000  # images of a stacked data set

# The training split; STL10's is its unlabelled part, as usual for GANs.
NAMED = {
    "digits": DataInfo((1, 8, 8), 10, 1797),
    "MNIST": DataInfo((1, 28, 28), 10, 60_000),
    "FashionMNIST": DataInfo((1, 28, 28), 10, 60_000),
    "KMNIST": DataInfo((1, 28, 28), 10, 60_000),
    "CIFAR10": DataInfo((3, 32, 32), 10, 50_000),
    "CIFAR100": DataInfo((3, 32, 32), 100, 50_000),
    "SVHN": DataInfo((3, 32, 32), 10, 73_257),
    "STL10": DataInfo((3, 96, 96), 0, 100_000),
    "ring": DataInfo((2, 1, 1), 8, 100_000),
    "grid": DataInfo((2, 1, 1), 25, 100_000),
    "CelebA": DataInfo((3, 218, 178), 0, 162_770),
}


def describe(config: Data) -> DataInfo:
    """Image shape, classes and size of the configured data set; reads at most a directory listing.

    Raises:
        ConfigError: a setting that does not fit the data set.
        UserError: the folder is missing or holds no images.
    """
    if config.name == "folder":
        from gan_dist.data.folder import list_images

        files, classes = list_images(Path(config.root), config.class_folders)
        own = DataInfo((3, 64, 64), len(classes), len(files), tuple(files))
    else:
        if config.class_folders:
            raise ConfigError(f"data.class_folders=true needs data.name=folder, not data.name={config.name}")
        if config.name in POINTS and (config.image_size or config.channels):
            raise ConfigError(f"data.name={config.name} are points: data.image_size and data.channels are not for them")
        own = NAMED[config.name]
    channels, height, width = own.image_shape
    if config.stacked:
        if channels != 1 or not own.num_classes or config.channels:
            raise ConfigError(
                f"data.stacked=true needs grayscale images with labels, as of FashionMNIST, not data.name={config.name}"
                + (f" with data.channels={config.channels}" if config.channels else "")
            )
        own, channels = replace(own, num_classes=own.num_classes**3, num_images=NUM_STACKED), 3
    if config.image_size:
        height, width = parse_image_size(config.image_size)
    return replace(own, image_shape=(config.channels or channels, height, width))
