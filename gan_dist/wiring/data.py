"""Read from the config and the environment which data set to use, and where files are kept."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import torch
from torch import Tensor

from gan_dist.data import DataInfo, Source
from gan_dist.data.datasets import DATASETS
from gan_dist.data.from_python import PYTHON
from gan_dist.data.in_memory import Images
from gan_dist.errors import ConfigError, UserError
from gan_dist.settings.checks import parse_image_size
from gan_dist.settings.schema import Config, Data

log = logging.getLogger(__name__)


def use_given(config: Config, dataset: Any) -> None:
    """Set `data.name` to "python" if a data set was given from Python, whichever name is in the settings.

    A run whose name is that of the data set gets the new name too.

    Args:
        config: the settings, which are changed.
        dataset: the data set; None if none was given.
    """
    if dataset is None:
        return
    if config.run.name == config.data.name:
        config.run.name = PYTHON
    config.data.name = PYTHON


def registered_dataset(data: Data) -> Any:
    """Make the data set that the settings name, if it is one that a user has registered; else return None.

    Raises:
        ConfigError: it cannot be made.
    """
    if data.name in DATASETS.own:
        return None
    try:
        return DATASETS[data.name](Path(data.root).expanduser(), **data.args)
    except UserError:
        raise
    except Exception as error:  # the code is a user's
        raise ConfigError(f"data.name={data.name}: cannot be made ({type(error).__name__}: {error})") from error


def source_of(data: Data, dataset: Any = None) -> Source:
    """Return the description of the data set that the settings ask for.

    Args:
        data: the settings.
        dataset: the data set that was given from Python, or that a user has registered; None for another one.
    """
    return Source(
        name=data.name,
        root=Path(data.root),
        download=data.download,
        image_size=parse_image_size(data.image_size) if data.image_size else None,
        channels=data.channels,
        stacked=data.stacked,
        class_folders=data.class_folders,
        skip_broken=data.broken_files == "skip",
        memory=data.memory_gib * 2**30,
        dataset=dataset,
    )


def keep_classes(info: DataInfo, class_names: Sequence[str]) -> DataInfo:
    """Return the data set with its classes in the order that they have in a run.

    Checkpoints of earlier versions do not name the classes, which were then sorted as text.

    Args:
        info: the data set.
        class_names: `class_names` of the run's checkpoint.
    """
    names = list(class_names) or sorted(info.class_names)
    if info.files is None or names == list(info.class_names) or sorted(names) != sorted(info.class_names):
        return info
    new_labels = np.array([names.index(name) for name in info.class_names])
    return replace(info, class_names=tuple(names), files=info.files.in_order(new_labels))


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


def absolute_paths(config: Config) -> dict[str, str]:
    """Return the absolute paths of the settings that name files, by the names of the settings; "" if not set.

    A run records them beside what was typed, because a relative path means another file in another directory.
    """
    weights = config.metrics.inception_weights
    return {
        "data.root": str(Path(config.data.root).expanduser().absolute()),
        "metrics.inception_weights": str(Path(weights).expanduser().absolute()) if weights else "",
    }


def use_paths(config: Config, recorded: dict[str, str], typed: Sequence[str]) -> None:
    """Replace the paths in a run's settings by the absolute ones that the run has recorded, if they still exist.

    Args:
        config: the settings, which are changed.
        recorded: what `absolute_paths` returned when the run was started; {} for a run of an earlier version.
        typed: settings key.sub=value of this command line. The paths that they name are kept.
    """
    named = {setting.partition("=")[0] for setting in typed}
    for section, field in ((config.data, "root"), (config.metrics, "inception_weights")):
        name = f"{type(section).__name__.lower()}.{field}"
        if name in named or not (path := recorded.get(name)):
            continue
        if Path(path).exists():
            setattr(section, field, path)
        elif getattr(section, field) != path and Path(getattr(section, field)).exists():
            log.warning("%s: %s is gone; %s in this directory is used", name, path, getattr(section, field))


def cache_dir() -> Path:
    """Return the directory for feature extractors: $GAN_DIST_CACHE, or a folder in the user's cache directory.

    Raises:
        UserError: the variable is not set, and the user has no home directory.
    """
    try:
        return _directory("GAN_DIST_CACHE") or Path(platformdirs.user_cache_dir("gan_dist"))
    except RuntimeError as error:
        raise UserError(f"there is no cache for the metrics ({error}): set GAN_DIST_CACHE to a directory") from error


def stage_dir() -> Path | None:
    """Return $GAN_DIST_STAGE, a directory on a local disk of each node for copies of image files; None if not set."""
    return _directory("GAN_DIST_STAGE")


def _directory(variable: str) -> Path | None:
    """Return the directory that an environment variable names, with `~` for the home directory; None if it is empty."""
    name = os.environ.get(variable, "")
    return Path(os.path.expanduser(name)) if name else None  # noqa: PTH111, it raises no error for unknown users
