"""What a run is refused for before data are read or networks built, each in a line that says what to do instead."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils import parametrize

from gan_dist import models
from gan_dist.checkpoint.find import config_path, read_facts
from gan_dist.data import DataInfo
from gan_dist.data.datasets import DATASETS
from gan_dist.errors import ConfigError
from gan_dist.game.augment import AUGMENTATIONS
from gan_dist.game.losses import LOSSES
from gan_dist.metrics.extractors import EXTRACTORS
from gan_dist.models._layers import MinibatchStd
from gan_dist.parallel.distributed import Distributed
from gan_dist.settings.config import changes_that_matter, choose, load_config
from gan_dist.settings.schema import Config, Optimizer
from gan_dist.wiring.kinds import kind_of
from gan_dist.wiring.networks import check_args, make_discriminator, make_generator, make_optimizer


def check_names(config: Config) -> None:
    """Refuse names of parts that do not exist.

    Raises:
        ConfigError: one line that names the key, the value and the nearest valid one.
    """
    named: list[tuple[str, str, Sequence[str]]] = [
        ("data.name", config.data.name, list(DATASETS)),
        ("model.name", config.model.name, models.names()),
        ("loss.name", config.loss.name, list(LOSSES)),
        ("metrics.extractor", config.metrics.extractor, list(EXTRACTORS)),
        *(("train.augment", name, list(AUGMENTATIONS)) for name in config.train.augment),
    ]
    for key, name, there_are in named:
        if name not in there_are:
            raise ConfigError(f"{key}={name}: {choose(name, there_are)}")


def check_parts(config: Config, info: DataInfo, dist: Distributed) -> None:
    """Refuse what can't be combined, before data are read or networks built.

    Raises:
        ConfigError: one line that names the key, the value and the nearest valid one.
    """
    model, kind = config.model, kind_of(config.data)
    try:
        models.architecture(model.name).check(info.image_shape, model.g_widths, model.d_widths)
    except ValueError as error:
        size = "x".join(map(str, info.image_shape[1:]))
        raise ConfigError(f"model.name={model.name} with data.image_size={size}: {model.name} {error}") from None
    check_args(model)
    if model.conditional and not info.num_classes:
        hint = " or data.class_folders=true" if config.data.name == "folder" else ""
        raise ConfigError(
            f"model.conditional=true, but data.name={config.data.name} has no labels; set model.conditional=false{hint}"
        )
    kind.check(config)
    check_game(config, info, dist.world_size)
    if config.metrics.every_kimg:
        kind.check_metrics(config, info)
    for key, batch_size in _batch_sizes(config):
        if batch_size > info.num_images:
            raise ConfigError(
                f"{key}={batch_size} is larger than the data set of {info.num_images} images; at most {info.num_images}"
            )
    for side in ("G", "D"):
        settings: Optimizer = getattr(config.optim, side)
        try:
            make_optimizer(settings, nn.Linear(1, 1))
        except Exception as error:  # torch checks few of its arguments; wrong ones raise errors of many types
            raise ConfigError(f"optim.{side}.name={settings.name}: {_words(error)}") from error


def _words(error: Exception) -> str:
    """A message that is meant for the user as it is, others with what they are."""
    return str(error) if isinstance(error, ValueError) else f"can't be made so ({type(error).__name__}: {error})"[:200]


def check_game(config: Config, info: DataInfo, world_size: int) -> None:
    """Refuse a loss, regularizers, growth and batches that make no sense together, or with these networks."""
    loss, model, growth = config.loss, config.model, config.growth
    if loss.label_smoothing and not LOSSES[loss.name].has_target:
        raise ConfigError(f"loss.label_smoothing: loss.name={loss.name} has no target to smooth; set it to 0")
    num_classes = info.num_classes if model.conditional else 0
    try:
        with torch.device("meta"):
            G = make_generator(model, info.image_shape, num_classes)
            D = make_discriminator(model, info.image_shape, num_classes)
    except Exception as error:  # sizes that are each possible may not fit together
        raise ConfigError(f"model.name={model.name} {_words(error)}") from error
    num_stages = G.last_stage + 1 if isinstance(G, models.Growing) else 0
    if growth.stable_kimg and not num_stages:
        raise ConfigError(f"growth.stable_kimg={growth.stable_kimg}: {model.name} does not grow; set it to 0")
    if growth.batch_sizes and not (growth.stable_kimg and len(growth.batch_sizes) == num_stages):
        wanted = f"one for each of {num_stages} sizes" if growth.stable_kimg else "none without growth.stable_kimg"
        raise ConfigError(f"growth.batch_sizes={growth.batch_sizes} must be {wanted}")
    group_size = max((m.group_size for m in D.modules() if isinstance(m, MinibatchStd)), default=1)
    for key, batch_size in _batch_sizes(config):
        _check_split(key, batch_size, config.train.micro_batch_size, world_size, group_size)
    if loss.gradient_penalty and any(isinstance(module, nn.BatchNorm2d) for module in D.modules()):
        raise ConfigError(
            f"loss.gradient_penalty={loss.gradient_penalty} is of each sample's own logit, but batch normalization in "
            f"D of model.name={config.model.name} mixes samples: set model.d_args={{batch_norm: false}}"
        )
    normalised = any(isinstance(module, parametrize.ParametrizationList) for module in D.modules())
    bounds = (loss.clip_weights, loss.gradient_penalty, loss.r1_gamma, loss.r2_gamma, normalised)
    if LOSSES[loss.name].critic and not any(bounds):
        raise ConfigError(
            f"loss.name={loss.name} grows without bound unless the critic is held: set loss.gradient_penalty=10, "
            "loss.clip_weights=0.01 or loss.r1_gamma"
        )


def _batch_sizes(config: Config) -> list[tuple[str, int]]:
    """Every global batch that a run has, and the setting that says so."""
    sizes = config.growth.batch_sizes
    return [("train.batch_size", config.train.batch_size), *(("growth.batch_sizes", size) for size in sizes)]


def _check_split(key: str, batch_size: int, micro: int, world_size: int, group_size: int) -> None:
    """The global batch must fall into equal shares, a share into equal micro-batches, and these into whole groups."""
    if batch_size % world_size:
        raise ConfigError(
            f"{key}={batch_size} is the global batch and must divide by the {world_size} processes; "
            f"nearest: {max(1, round(batch_size / world_size)) * world_size}"
        )
    share = batch_size // world_size
    if micro and micro < share and share % micro:
        raise ConfigError(
            f"train.micro_batch_size={micro} must divide the batch of a process, {share} "
            f"({key}={batch_size} over {world_size})"
        )
    for name, size in ((f"{key}={batch_size} over {world_size} processes", share), ("train.micro_batch_size", micro)):
        if size % group_size:
            raise ConfigError(
                f"{name}: {size} must divide by {group_size}, as D compares groups of {group_size} images"
            )


def check_resume(checkpoint: Path, config: Config, info: DataInfo) -> None:
    """Refuse to go on with a run as another one, before data are read.

    Raises:
        ConfigError: what differs, old -> new.
    """
    changes = changes_that_matter(load_config(config_path(checkpoint)), config)
    num_images = read_facts(checkpoint)["num_images"]
    if num_images != info.num_images:
        changes.append(f"images in the data set: {num_images} -> {info.num_images}")
    if changes:
        raise ConfigError(f"{checkpoint} is of another run: {'; '.join(changes)}; start a new one in another run.dir")


def changed_environment(checkpoint: Path, dist: Distributed) -> str:
    """What a run's last bits depend on and is different now from when the checkpoint was written; "" if nothing is."""
    now = dist.environment
    before = {**now, **read_facts(checkpoint)["environment"]}
    return ", ".join(f"{key} was {before[key]} and is {now[key]}" for key in now if before[key] != now[key])


def check_content(checkpoint: Path, key: str) -> None:
    """Likewise once they are: with another content than that of this `gan_dist.data.in_memory.data_key`."""
    if read_facts(checkpoint).get("data_key", key) != key:
        raise ConfigError(f"{checkpoint} is of another run: the data set's content differs; start a new one elsewhere")
