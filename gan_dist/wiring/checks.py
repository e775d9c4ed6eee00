"""Refuse settings that do not fit together. Most checks run before data are loaded or networks are built.

Each error is one line that says what to do instead.
"""

from __future__ import annotations

import logging
from pathlib import Path

from torch import nn
from torch.nn.utils import parametrize

from gan_dist import models
from gan_dist.checkpoint.find import read_facts
from gan_dist.data import DataInfo
from gan_dist.data.from_python import PYTHON
from gan_dist.data.in_memory import Images
from gan_dist.data.key import data_key, differences, is_in_memory, old_key
from gan_dist.errors import ConfigError
from gan_dist.game.augment import make_augmentations
from gan_dist.models._layers import MinibatchStd
from gan_dist.parallel.distributed import Distributed
from gan_dist.settings.checks import check_counted
from gan_dist.settings.schema import Config, Optimizer, show
from gan_dist.wiring.iteration import make_game
from gan_dist.wiring.kinds import kind_of
from gan_dist.wiring.networks import make_optimizer, networks_on_meta
from gan_dist.wiring.trial import random_layers, try_loss, try_networks

log = logging.getLogger("gan_dist")


def check_parts(config: Config, info: DataInfo, dist: Distributed) -> None:
    """Check that the settings fit together, and that they fit the data set and the number of processes.

    Call this function before data are loaded or networks are built.

    Args:
        config: the settings, checked by `gan_dist.wiring.parts.check_names`.
        info: the data set; see `gan_dist.data.datasets.describe`.
        dist: the processes.

    Raises:
        ConfigError: they do not fit; the message names the setting, its value and a valid value.
    """
    model, kind = config.model, kind_of(config.data)
    check_counted(config)
    try:
        models.check(info.image_shape, (model.name_of_G, model.g_widths), (model.name_of_D, model.d_widths))
    except ValueError as error:
        size = "x".join(map(str, info.image_shape[1:]))
        raise ConfigError(f"model.name={model.name} with data.image_size={size}: {error}") from None
    for name in config.train.augment_args:
        if name not in config.train.augment:
            raise ConfigError(f"train.augment_args: {name} is not in train.augment={show(config.train.augment)}")
    try:
        make_augmentations(config.train.augment, config.train.augment_args)
    except ValueError as error:
        raise ConfigError(f"train.augment={show(config.train.augment)}: {error}") from None
    if model.conditional and not info.num_classes:
        hints = {"folder": " or data.class_folders=true", PYTHON: " or give a data set of (image, label)"}
        hint = hints.get(config.data.name, "")
        raise ConfigError(
            f"model.conditional=true, but data.name={config.data.name} has no labels; set model.conditional=false{hint}"
        )
    kind.check(config)
    for doubt in check_game(config, info, dist.world_size):
        if dist.is_main:
            log.warning(doubt)
    if config.metrics.every_kimg:
        kind.check_metrics(config, info)
    for key, batch_size in _batch_sizes(config):
        if batch_size > info.num_images:
            raise ConfigError(
                f"{key}={batch_size} is larger than the data set of {info.num_images} images; at most {info.num_images}"
            )
    for side in ("G", "D"):
        settings: Optimizer = getattr(config.optim, side)
        for name in ("lr", "betas", "params"):
            if name in settings.args:
                instead = "leave it out" if name == "params" else f"set optim.{side}.{name}"
                raise ConfigError(f"optim.{side}.args={settings.args} must not have {name}: {instead} instead")
        try:
            make_optimizer(settings, nn.Linear(1, 1))
        except Exception as error:  # torch raises errors of many types for wrong arguments
            raise ConfigError(f"optim.{side}.name={settings.name}: {_words(error)}") from error


def _words(error: Exception) -> str:
    """The message of a ValueError, which is written for the user; for other errors also their type."""
    return str(error) if isinstance(error, ValueError) else f"cannot be made ({type(error).__name__}: {error})"[:200]


def check_game(config: Config, info: DataInfo, world_size: int) -> list[str]:
    """Check that loss, regularizers, progressive growing, batches and networks fit together.

    Args:
        config: the settings.
        info: the data set; see `gan_dist.data.datasets.describe`.
        world_size: number of processes.

    Returns:
        What is possible but doubtful, a line each.

    Raises:
        ConfigError: they do not fit; the message names the setting and says what to set instead.
    """
    loss, model, growth = config.loss, config.model, config.growth
    game = make_game(config)
    if loss.label_smoothing and not game.loss.has_target:
        raise ConfigError(f"loss.label_smoothing: loss.name={loss.name} has no target to smooth; set it to 0")
    num_classes = info.num_classes if model.conditional else 0
    try:
        G, D = networks_on_meta(model, info.image_shape, num_classes)
    except Exception as error:  # each size may be valid, but not all of them together
        raise ConfigError(f"model.name={model.name} {_words(error)}") from error
    try_networks(model, G, D, info.image_shape, num_classes)
    try_loss(loss.name, game.loss)
    num_stages = G.last_stage + 1 if isinstance(G, models.Growing) else 0
    if growth.stable_kimg and not num_stages:
        raise ConfigError(f"growth.stable_kimg={growth.stable_kimg}: {model.name} does not grow; set it to 0")
    if growth.batch_sizes and not (growth.stable_kimg and len(growth.batch_sizes) == num_stages):
        wanted = f"one for each of {num_stages} sizes" if growth.stable_kimg else "empty without growth.stable_kimg"
        raise ConfigError(f"growth.batch_sizes={growth.batch_sizes} must be {wanted}")
    group_size = max((m.group_size for m in D.modules() if isinstance(m, MinibatchStd)), default=1)
    for key, batch_size in _batch_sizes(config):
        _check_split(key, batch_size, config.train.micro_batch_size, world_size, group_size)
    mixes = any(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in D.modules())
    if loss.gradient_penalty and mixes:
        raise ConfigError(
            f"loss.gradient_penalty={loss.gradient_penalty} needs logits that depend on one sample each, but "
            f"batch normalization in D of model.name={config.model.name} mixes samples: set "
            "model.d_args={batch_norm: false}"
        )
    normalised = any(isinstance(module, parametrize.ParametrizationList) for module in D.modules())
    bounds = (loss.clip_weights, loss.gradient_penalty, loss.r1_gamma, loss.r2_gamma, loss.penalties, normalised)
    if game.loss.critic and not any(bounds):
        raise ConfigError(
            f"loss.name={loss.name} grows without bound unless the critic is held: set loss.gradient_penalty=10, "
            "loss.clip_weights=0.01 or loss.r1_gamma"
        )
    drawn = {name: random_layers(network) for name, network in (("G", G), ("D", D))}
    return [
        *(
            f"{name} has layers that draw random numbers of their own ({layers}): the run is not the same on another "
            "number of processes or after a stop; leave them out to keep that"
            for name, layers in drawn.items()
            if layers
        ),
        *_doubts_of_penalties(config, mixes),
    ]


def _doubts_of_penalties(config: Config, mixes: bool) -> list[str]:
    """Say if a penalty mixes the gradients of a batch, because D has batch normalization."""
    loss = config.loss
    return [
        f"loss.{name}={gamma} with batch normalization in D of model.name={config.model.name}: the penalty is meant "
        f"for the gradient of one sample, and here it mixes those of a batch: set model.d_args={{batch_norm: false}} "
        f"or loss.{name}=0"
        for name, gamma in (("r1_gamma", loss.r1_gamma), ("r2_gamma", loss.r2_gamma))
        if gamma and mixes
    ]


def _batch_sizes(config: Config) -> list[tuple[str, int]]:
    """The sizes of all global batches of a run, each with the name of its setting."""
    sizes = config.growth.batch_sizes
    return [("train.batch_size", config.train.batch_size), *(("growth.batch_sizes", size) for size in sizes)]


def _check_split(key: str, batch_size: int, micro: int, world_size: int, group_size: int) -> None:
    """Check that a global batch can be divided.

    Args:
        key: the setting of the global batch, for messages.
        batch_size: the global batch, which must divide by the world size.
        micro: `train.micro_batch_size`, which must divide the per-process batch; 0 for no micro-batches.
        world_size: number of processes.
        group_size: D compares so many images (see `MinibatchStd`), so it must divide the per-process batch and `micro`.
    """
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


def check_content(checkpoint: Path, key: str, dataset: Images, info: DataInfo) -> list[str]:
    """Check that a run is resumed with the same images, after the data are loaded.

    Images that could not be read are left out of the comparison, so that they may have been mended. What was compared
    when the images were in memory need not be known if they are read file by file now, and the other way round.

    Args:
        checkpoint: the checkpoint to resume from.
        key: the key of the data set now; see `gan_dist.data.key`.
        dataset: the data set now.
        info: its properties.

    Returns:
        Sentences about what has changed without being another data set.

    Raises:
        ConfigError: the images differ.
    """
    facts = read_facts(checkpoint)
    before, lost = str(facts.get("data_key", key)), [i for i in facts["unreadable"] if 0 <= i < len(dataset)]
    if facts["class_names"] and facts["class_names"] != list(info.class_names):
        old, new = (", ".join(names) for names in (facts["class_names"], info.class_names))
        raise ConfigError(
            f"{checkpoint} belongs to another run: the classes were {old} and are {new}; "
            "start a new run in another run.dir"
        )
    if before == key:
        changed = []
    elif ":" not in before:  # of an earlier version
        changed = [] if before == old_key(dataset, info.num_classes) else ["pixels or labels"]
    else:
        changed = differences(before, data_key(dataset, info.num_classes, without=lost) if lost else key)
    if changed:
        raise ConfigError(
            f"{checkpoint} belongs to another run: the data set's content differs ({', '.join(changed)}); "
            "start a new run in another run.dir"
        )
    notes = []
    if ":" not in before and dataset.unreadable:
        notes.append("other images than before stand in for those that cannot be read, so the run sees another order")
    if ":" in before and is_in_memory(before) != is_in_memory(key):
        how = "kept in memory" if is_in_memory(key) else "read file by file"
        notes.append(f"the images are now {how}, which was not so before; they are the same images")
    readable, _ = dataset.readable(lost[:1000])
    if readable:
        notes.append(f"{len(readable)} images that could not be read before can be read now; the run now sees them")
    return notes
