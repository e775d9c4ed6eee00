"""Data sets: which one a run asks for (`Source`), its properties (`DataInfo`), loading it, and the stream of batches.

Images are stored as uint8 (N, C, H, W), points as floats (N, 2, 1, 1), and labels as int64 (N,). The training step
converts images to floats.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from gan_dist.data.files import FileList


@dataclass(frozen=True)
class Source:
    """The data set that a run asks for, and how its images are to be converted.

    Attributes:
        name: a key of `gan_dist.data.datasets.DATASETS`.
        root: directory that holds the files, or to which they are downloaded; for "folder", the directory of images.
        download: whether files that are not below `root` may be downloaded into it.
        image_size: (height, width) to which images are cropped and resized; None for the data set's own size.
        channels: 1 (grayscale), 3 (RGB) or 4 (RGBA); 0 for the data set's own number.
        stacked: stack three grayscale images as the channels of one image.
        class_folders: for "folder", each subfolder is a class.
        skip_broken: let other images stand in for those that cannot be read, instead of raising an error.
        memory: largest size in bytes of the decoded images to be kept in memory. The files of a larger data set are
            decoded when they are needed.
        dataset: for "python", the data set that was given from Python; None if none was given.
    """

    name: str = "digits"
    root: Path = Path("data")
    download: bool = True
    image_size: tuple[int, int] | None = None
    channels: int = 0
    stacked: bool = False
    class_folders: bool = False
    skip_broken: bool = True
    memory: float = 4 * 2.0**30
    dataset: Any = None


@dataclass(frozen=True)
class DataInfo:
    """The properties of a data set, which are known before any image is decoded.

    Attributes:
        image_shape: (C, H, W) of the images after conversion.
        num_classes: number of classes; labels are in 0 … num_classes - 1. 0 if the data set has no labels.
        num_images: number of images in the training split.
        files: for "folder", all images; None for other data sets.
        class_names: for "folder" and "python", the names of the classes, in the order of their labels; empty if the
            classes have numbers only.
        labels: for "python", the labels of all images, int64 (N,); None for other data sets, and if it has no labels.
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    num_images: int
    files: FileList | None = None
    class_names: tuple[str, ...] = ()
    labels: Tensor | None = None
