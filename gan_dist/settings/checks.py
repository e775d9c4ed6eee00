"""Check the values of settings, each by itself and those that must fit together whatever the data set is.

The checks that need the data set or the architecture are in `gan_dist.wiring.checks`.
"""

from __future__ import annotations

import math
import re
from operator import attrgetter
from pathlib import Path

from gan_dist.errors import ConfigError
from gan_dist.settings.schema import PATHS, Config, walk_settings

_POSITIVE = {
    "train.kimg",
    "train.n_critic",
    "train.meet_minutes",
    "model.z_dim",
    "model.g_widths",
    "model.d_widths",
    "growth.batch_sizes",
    "loss.penalty_interval",
    "sample.rows",
    "metrics.num_images",
    "metrics.batch_size",
    "data.memory_gib",
    "optim.G.lr",
    "optim.D.lr",
}

# Largest values of settings that determine sizes. Larger values are mistakes, or come from a stranger's file.
_MOST = {
    "model.z_dim": 2**20,
    "model.g_widths": 2**20,
    "model.d_widths": 2**20,
    "train.batch_size": 2**20,
    "train.n_critic": 2**20,
    "growth.batch_sizes": 2**20,
    "metrics.batch_size": 2**20,
    "data.workers": 2**10,
    "sample.rows": 2**10,
    "train.seed": 2**63 - 1,
    "metrics.seed": 2**63 - 1,
}
# Largest values of settings in kimg, and of other whole numbers; most entries of a list, and most characters of a text.
_MOST_KIMG, _MOST_COUNTED, _LONGEST, _MOST_CHARACTERS = 1e12, 2**40, 2**10, 2**12


def check(config: Config) -> None:
    """Check every value by itself, and the values that must fit together whatever the data set is.

    Raises:
        ConfigError: a value is impossible; the message names the setting and the value.
    """
    for name, _, kind, _ in walk_settings():
        value = attrgetter(name)(config)
        if isinstance(value, list) and len(value) > _LONGEST:
            raise ConfigError(f"{name} has {len(value)} entries; at most {_LONGEST}")
        if isinstance(value, str):
            _check_text(name, value)
        for number in value if kind in (list[int], list[float]) else [value] if kind in (int, float) else []:
            _check_number(name, number)
    _check_together(config)


def _check_text(name: str, text: str) -> None:
    if len(text) > _MOST_CHARACTERS:
        raise ConfigError(f"{name} has {len(text)} characters; at most {_MOST_CHARACTERS}")
    if "\0" in text and name in (*PATHS, "run.name"):
        raise ConfigError(f"{name}={text} must not contain a null character, because it names a file")


def _check_number(name: str, number: float) -> None:
    if not math.isfinite(number) or number < 0:
        raise ConfigError(f"{name}={number} must not be negative, infinite or nan")
    if number == 0 and name in _POSITIVE:
        raise ConfigError(f"{name}={number} must be greater than 0")
    most = _MOST_KIMG if name.endswith("kimg") else _MOST_COUNTED if type(number) is int else math.inf
    if number > _MOST.get(name, most):
        raise ConfigError(f"{name}={number} must be at most {_MOST.get(name, most):,}")


def _check_together(config: Config) -> None:
    """Check the values that must fit together, and texts that have a form."""
    if config.data.image_size:
        parse_image_size(config.data.image_size)
    if config.loss.label_smoothing >= 1:
        raise ConfigError(f"loss.label_smoothing={config.loss.label_smoothing} must be below 1, for example 0.1")
    for side in ("G", "D"):
        betas = getattr(config.optim, side).betas
        if len(betas) != 2 or max(betas) >= 1:
            raise ConfigError(
                f"optim.{side}.betas={betas} must be two numbers from 0 to below 1, for example [0.5, 0.999]"
            )
        if getattr(config.optim, side).beta2_final >= 1:
            raise ConfigError(f"optim.{side}.beta2_final must be below 1, for example 0.99")
        settings = getattr(config.optim, side)
        for name in ("lr_final", "beta2_final"):
            if getattr(settings, name) and settings.schedule == "constant":
                raise ConfigError(f"optim.{side}.{name} needs optim.{side}.schedule=cosine or linear")
    if config.loss.gamma_decay != 1 and config.optim.D.schedule == "constant":
        raise ConfigError("loss.gamma_decay follows optim.D.schedule: set optim.D.schedule to cosine or linear")
    if config.growth.fade_kimg and not config.growth.stable_kimg:
        raise ConfigError("growth.fade_kimg needs growth.stable_kimg, the time that each size is trained for")
    if config.tracking.artifact and not config.checkpoint.every_kimg:
        raise ConfigError("tracking.artifact=true uploads the last checkpoint, but checkpoint.every_kimg=0 writes none")
    if config.run.name != Path(config.run.name).name or config.run.name == "..":
        raise ConfigError(f"run.name={config.run.name} must be part of a directory name: use letters, digits, - and _")
    if config.resume != "never" and not config.run.dir:
        raise ConfigError(f"resume={config.resume} needs run.dir=DIR, the run to go on with")


# Settings in kimg that are counted in whole images: when something is due, or how long it lasts.
_COUNTED = ("every_kimg", "train.kimg", "growth.stable_kimg", "growth.fade_kimg")


def check_counted(config: Config) -> None:
    """Check that no setting in kimg becomes 0 because it is rounded to images: 0 means "never", which nobody asked for.

    `check` does not do this, because a run of an earlier version may have such a setting, and can still be sampled.

    Raises:
        ConfigError: a setting is less than one image.
    """
    for name in (name for name, *_ in walk_settings() if name.endswith(_COUNTED)):
        kimg = attrgetter(name)(config)
        if kimg and round(kimg * 1000) == 0:
            zero = "" if name in _POSITIVE else ", or 0"
            raise ConfigError(f"{name}={kimg} is less than one image: set at least 0.001{zero}")


def parse_image_size(text: str) -> tuple[int, int]:
    """Return (height, width) in pixels: (64, 64) for "64", and (64, 96) for "64x96".

    Raises:
        ConfigError: the text has another form.
    """
    match = re.fullmatch("([1-9][0-9]{0,4})(?:x([1-9][0-9]{0,4}))?", text)
    if not match:
        raise ConfigError(f"data.image_size={text} must be H or HxW in pixels, for example 64 or 64x96")
    return int(match[1]), int(match[2] or match[1])
