"""What a config says of its data, and where files are kept."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs
import torch
from torch import Tensor

from gan_dist.data import DataInfo, Source
from gan_dist.data.in_memory import Images
from gan_dist.settings.config import parse_image_size
from gan_dist.settings.schema import Config, Data


def source_of(data: Data) -> Source:
    """The data set that is asked for."""
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
    """How often each class occurs in the data, (num_classes,): G is asked for labels as often.

    None for networks that take no label.
    """
    if not config.model.conditional:
        return None
    counts = torch.bincount(dataset.labels.cpu(), minlength=info.num_classes)
    return counts / counts.sum()


def cache_dir() -> Path:
    """Where networks for metrics are kept between runs: $GAN_DIST_CACHE, or the user's cache directory."""
    return Path(os.environ.get("GAN_DIST_CACHE") or platformdirs.user_cache_dir("gan_dist"))


def stage_dir() -> Path | None:
    """A directory on each node's own disk for copies of image files, if $GAN_DIST_STAGE names one."""
    return Path(os.environ["GAN_DIST_STAGE"]) if os.environ.get("GAN_DIST_STAGE") else None
