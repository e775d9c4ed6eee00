"""Read from the config and the environment which data set to use, and where files are kept."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs
import torch
from torch import Tensor

from gan_dist.data import DataInfo, Source
from gan_dist.data.in_memory import Images
from gan_dist.errors import UserError
from gan_dist.settings.config import parse_image_size
from gan_dist.settings.schema import Config, Data


def source_of(data: Data) -> Source:
    """Return the description of the data set that the settings ask for."""
    return Source(
        name=data.name,
        root=Path(data.root),
        image_size=parse_image_size(data.image_size) if data.image_size else None,
        channels=data.channels,
        stacked=data.stacked,
        class_folders=data.class_folders,
        skip_broken=data.broken_files == "skip",
        memory=data.memory_gib * 2**30,
    )


def class_probabilities(dataset: Images, info: DataInfo, config: Config) -> Tensor | None:
    """Return the share of each class in the data set: (num_classes,), or None if the networks take no label.

    The labels for G are drawn with these probabilities.

    Args:
        dataset: the data set.
        info: its number of classes.
        config: the settings.
    """
    if not config.model.conditional:
        return None
    counts = torch.bincount(dataset.labels.cpu(), minlength=info.num_classes)
    return counts / counts.sum()


def cache_dir() -> Path:
    """Return the directory for feature extractors: $GAN_DIST_CACHE, or a folder in the user's cache directory.

    Raises:
        UserError: the variable is not set, and the user has no home directory.
    """
    try:
        return Path(os.environ.get("GAN_DIST_CACHE") or platformdirs.user_cache_dir("gan_dist"))
    except RuntimeError as error:
        raise UserError(f"there is no cache for the metrics ({error}): set GAN_DIST_CACHE to a directory") from error


def stage_dir() -> Path | None:
    """Return $GAN_DIST_STAGE, a directory on a local disk of each node for copies of image files; None if not set."""
    return Path(os.environ["GAN_DIST_STAGE"]) if os.environ.get("GAN_DIST_STAGE") else None
