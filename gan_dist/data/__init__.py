"""Data sets: what is asked for (`Source`), what it is like (`DataInfo`), reading it, and the stream of batches.

Images are uint8 (N, C, H, W) and labels int64 (N,) until they are on the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Source:
    """Which data set a run asks for, and how it wants its images.

    Attributes:
        name: a key of `gan_dist.data.datasets.DATASETS`.
        root: where the files lie, or are downloaded to; for the set "folder", the directory of images.
        image_size: (height, width) to crop and resize to; None: the set's own.
        channels: 1, 3 or 4; 0: the set's own.
        stacked: three grayscale images as the channels of one.
        class_folders: for the set "folder", its subfolders are the classes.
        skip_broken: leave out images that can't be read, instead of raising an error.
        memory: bytes that the decoded images may take; larger sets are read file by file.
    """

    name: str = "digits"
    root: Path = Path("data")
    image_size: tuple[int, int] | None = None
    channels: int = 0
    stacked: bool = False
    class_folders: bool = False
    skip_broken: bool = True
    memory: float = 4 * 2.0**30


@dataclass(frozen=True)
class DataInfo:
    """What a data set is like, known before an image is decoded.

    Attributes:
        image_shape: (C, H, W).
        num_classes: number of labels; 0 if the data set has none.
        num_images: images in the training split.
        files: for the set "folder", the image files and their labels.
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    num_images: int
    files: tuple[tuple[Path, int], ...] = ()
