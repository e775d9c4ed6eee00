"""Start a new run from the weights of another run: the section `init` of the settings."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gan_dist.checkpoint.find import NETWORKS, find_checkpoint
from gan_dist.checkpoint.restore import read_network
from gan_dist.checkpoint.state import State
from gan_dist.data import DataInfo
from gan_dist.errors import ConfigError
from gan_dist.models import DISCRIMINATORS, Growing
from gan_dist.parallel.distributed import Distributed
from gan_dist.settings.config import choose
from gan_dist.settings.schema import Config, Model
from gan_dist.wiring.networks import networks_on_meta, saved_networks

log = logging.getLogger(__name__)

_OF_A_STAGE = ("alpha", "_extra_state")  # what a growing network keeps about its stage, which the new run decides


@dataclass(frozen=True)
class Classes:
    """The classes of a network, and which part of each of its tensors belongs to them.

    Attributes:
        names: the name of each class; of classes without names, their numbers.
        places: for each tensor with a part for each class: the dimension that this part is in, and where it begins.
    """

    names: list[str]
    places: dict[str, tuple[int, int]]


def check_init(config: Config, goes_on: bool) -> None:
    """Check the section `init`.

    Args:
        config: the settings.
        goes_on: the run goes on from a checkpoint of its own.

    Raises:
        ConfigError: a network or a number of blocks that does not exist is named; or blocks of weights that were never
            trained would be frozen.
    """
    for name in config.init.networks:
        if name not in NETWORKS:
            raise ConfigError(f"init.networks: {name}: {choose(name, NETWORKS)}")
    if not config.init.freeze_D:
        return
    name, count = config.model.name_of_D, config.init.freeze_D
    if not hasattr(DISCRIMINATORS[name], "freezable"):
        setting = "model.d_name" if config.model.d_name else "model.name"
        raise ConfigError(
            f"init.freeze_D={count}: {setting}={name} does not name the blocks of D, by a method freezable(): set "
            "init.freeze_D=0"
        )
    if not goes_on and not (config.init.run and "D" in config.init.networks):
        raise ConfigError(
            f"init.freeze_D={count} freezes weights of another run: set init.run=RUN, with D in init.networks"
        )


def start_from(config: Config, info: DataInfo, state: State, dist: Distributed) -> dict[str, Any]:
    """Take the weights that `init.run` and `init.networks` name into a new run, as far as they fit.

    Moments stay fresh, and no image is seen yet. All processes call this function together.

    Args:
        config: the settings of the new run.
        info: its data set.
        state: its state, which is changed.
        dist: the processes.

    Returns:
        What the run's checkpoints record about where it came from; {} if it starts from nothing.

    Raises:
        UserError: there is no such run or checkpoint, or it is damaged.
        ConfigError: no weight of a network fits.
    """
    if not config.init.run:
        return {}
    checkpoint = dist.from_main(lambda: _find(config.init.run))
    facts, source, networks = saved_networks(checkpoint)
    saved = dict(zip("GD", networks))
    number = info.num_classes if config.model.conditional else 0
    there = _classes(source.model, facts["image_shape"], facts["num_classes"], facts["class_names"])
    here = _classes(config.model, info.image_shape, number, list(info.class_names) if number else [])
    new: dict[str, list[str]] = {}
    for name in config.init.networks:
        kind = name[0]  # G_ema has the tensors of G
        tensors = read_network(checkpoint, name, saved[kind])
        taken, new[name] = _take(getattr(state, name), tensors, here[kind], there[kind])
        if not taken:
            raise ConfigError(f"init.run={config.init.run}: no weight of {name} fits model.name={config.model.name}")
        if dist.is_main:
            words = f"all but {'; '.join(new[name])}" if new[name] else "all weights"
            log.info("%s starts from %s: %s", name, checkpoint, words)
    if "G" in config.init.networks and "G_ema" not in config.init.networks:
        state.G_ema.load_state_dict(state.G.state_dict())
    return {"checkpoint": str(checkpoint.absolute()), "kimg": facts["nimg"] / 1000, "new": new}


def _find(text: str) -> Path:
    """Find the checkpoint that RUN or RUN:CHECKPOINT names."""
    run, _, name = (text, "", "latest") if Path(text).exists() or ":" not in text else text.rpartition(":")
    return find_checkpoint(Path(run), name)


def _classes(model: Model, shape: Sequence[int], number: int, names: Sequence[str]) -> dict[str, Classes]:
    """Find the parts of G's and D's tensors that belong to classes: those that grow with the number of classes."""
    found = {"G": Classes([], {}), "D": Classes([], {})}
    if not number:
        return found
    image_shape = (shape[0], shape[1], shape[2])
    fewer, more = (networks_on_meta(model, image_shape, n) for n in (number, number + 1))
    for key, small, large in zip(found, fewer, more):
        places = {}
        for (name, a), b in zip(_tensors(small).items(), _tensors(large).values()):
            for dim, (size, larger) in enumerate(zip(a.shape, b.shape)):
                if larger == size + 1:
                    places[name] = dim, size - number
        found[key] = Classes(list(names) or [str(i) for i in range(number)], places)
    return found


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    """The weights and buffers of a network, without what a growing network keeps about its stage."""
    state = network.state_dict()
    return {name: t for name, t in state.items() if not (isinstance(network, Growing) and name in _OF_A_STAGE)}


@torch.no_grad()
def _take(network: nn.Module, tensors: dict[str, Tensor], here: Classes, there: Classes) -> tuple[int, list[str]]:
    """Copy tensors into a network as far as they fit.

    Args:
        network: the network to change.
        tensors: the tensors of the other network.
        here, there: the classes of the network, and of the other one.

    Returns:
        The number of tensors that have got values, and what stays new, in words.
    """
    taken, new = 0, []
    for name, own in _tensors(network).items():
        other, of_classes = tensors.get(name), name in here.places or name in there.places
        if other is None or (own.shape != other.shape and not of_classes):
            new.append(f"{name} ({_size(own)}, there {'none' if other is None else _size(other)})")
        elif not of_classes:
            own.copy_(other)
            taken += 1
        elif (without := _take_classes(name, own, other, here, there)) is None:
            new.append(f"{name} ({_size(own)}, there {_size(other)})")
        else:
            new += [f"{name} of the classes {', '.join(without)}"] if without else []
            taken += 1
    return taken, new


def _take_classes(name: str, own: Tensor, other: Tensor, here: Classes, there: Classes) -> list[str] | None:
    """Copy a tensor with a part for each class: the common part, and the parts of classes with the same name.

    Returns:
        The classes whose parts stay new; None if the rest of the tensor does not fit.
    """
    place = here.places.get(name) or there.places[name]
    dim, start = place
    if own.ndim != other.ndim:
        return None
    # In a network without classes the whole tensor is the common part.
    places = [of.places.get(name, (dim, t.shape[dim])) for of, t in ((here, own), (there, other))]
    rest = [[n for i, n in enumerate(t.shape) if i != dim] for t in (own, other)]
    if places != [place, place] or rest[0] != rest[1]:
        return None
    own.narrow(dim, 0, start).copy_(other.narrow(dim, 0, start))
    names = here.names if name in here.places else []
    known = {label: i for i, label in enumerate(there.names)} if name in there.places else {}
    for i, label in enumerate(names):
        if label in known:
            own.narrow(dim, start + i, 1).copy_(other.narrow(dim, start + known[label], 1))
    return [label for label in names if label not in known]


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"
