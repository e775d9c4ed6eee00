"""Compare the settings of a run with those that it had before, and say which differences change what it has trained."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

from gan_dist.errors import ConfigError
from gan_dist.settings.schema import Config, walk_settings

# The name by which `allow_changes` allows other images: their number, their classes or their content.
CONTENT = "data.content"

# Settings that a run keeps unless `allow_changes` names them. They determine the loss, the networks, the optimizers'
# saved moments, the data and the order of the data: what was trained so far would have been another run with others.
_KEPT = (
    "loss.", "model.", "growth.", "data.name", "data.image_size", "data.channels", "data.class_folders", "data.stacked",
    "data.hflip", "data.args", "train.seed", "train.batch_size", "train.n_critic", "train.augment", "train.precision",
    "optim.G.name", "optim.D.name", "init.freeze_D",
)  # fmt: skip

# Settings that belong to one start of a run.
_OF_A_START = ("run.", "resume", "plugins", "allow_changes", "init.run", "init.networks")

Changes = dict[str, tuple[Any, Any]]  # name of a setting -> its value before, its value now


def find_changes(before: Config, now: Config) -> Changes:
    """Return every setting that differs, with both values. Settings that belong to one start are left out."""
    names = [name for name, *_ in walk_settings() if not name.startswith(_OF_A_START)]
    pairs = {name: (attrgetter(name)(before), attrgetter(name)(now)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def kept_only(changes: Changes) -> Changes:
    """Return those of the changes that would change the meaning of what the run has trained so far."""
    return {name: pair for name, pair in changes.items() if name.startswith(_KEPT)}


def in_words(changes: Changes) -> str:
    """Return `key: old -> new` for each change, separated by semicolons."""
    return "; ".join(f"{name}: {before} -> {now}" for name, (before, now) in changes.items())


def check_allowed(names: Sequence[str]) -> None:
    """Check the value of `allow_changes`.

    Raises:
        ConfigError: a name is neither a setting nor `data.content`; the message names the nearest one.
    """
    settings = [CONTENT, *(name for name, *_ in walk_settings() if not name.startswith(_OF_A_START))]
    for name in names:
        if name not in settings:
            nearest = difflib.get_close_matches(name, settings, n=1, cutoff=0.0)[0]
            raise ConfigError(f"allow_changes=[{name}]: no such setting; nearest: {nearest}")
