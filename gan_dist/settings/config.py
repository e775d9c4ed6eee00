"""Read settings from a file and the command line, merge them with the defaults, and refuse impossible values."""

from __future__ import annotations

import difflib
import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationKeyError, InterpolationResolutionError, OmegaConfBaseException

from gan_dist.errors import ConfigError
from gan_dist.settings.schema import Config, Run, describe_type, show, walk_settings


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read the settings of a run: the defaults, then the file, then the overrides. Every value is checked.

    Args:
        path: a YAML file; None for no file.
        overrides: settings as `key.sub=value`.

    Raises:
        ConfigError: the file cannot be read, a setting does not exist, or a value is impossible. The message names the
            setting, its value and the nearest valid one.
    """
    config = OmegaConf.structured(Config)
    for source, values in _sources(path, overrides):
        _refuse_unknown_keys(source, values)
        try:
            config = OmegaConf.merge(config, values)
            result = OmegaConf.to_object(config)
        except (OmegaConfBaseException, ValueError, TypeError) as error:
            raise ConfigError(f"{source}: {_explain(error, values)}") from None
    assert isinstance(result, Config)
    check(result)
    return result


def as_yaml(config: Config) -> str:
    """Return all settings as YAML. `load_config` reads the same settings from a file with this text."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def for_file(config: Config) -> Config:
    """Return the settings to save with a run: without `run.dir` and `resume`, which belong to one start of the run."""
    return replace(config, run=Run(name=config.run.name), resume="never")


def as_dict(config: Config) -> dict[str, Any]:
    """Return the settings as nested dicts."""
    values = OmegaConf.to_container(OmegaConf.structured(config))
    assert isinstance(values, dict)
    return values  # type: ignore[return-value]


def _sources(path: Path | None, overrides: Sequence[str]) -> Iterator[tuple[str, Any]]:
    yield "defaults", OmegaConf.create({})
    if path is not None:
        yield str(path), _read_file(path)
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"{override!r}: an override is written key.sub=value, for example train.kimg=500")
        try:
            yield "command line", OmegaConf.from_dotlist([override])
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise ConfigError(f"{override!r}: cannot read this value: {' '.join(str(error).split())}") from None


MAX_FILE = 2**20  # largest size of a config file in bytes; the ones in configs/ have a few thousand


def _read_file(path: Path) -> Any:
    """Read a config file, which may come from a stranger.

    YAML aliases are refused, because a short file with aliases can need any amount of memory. A `run.dir` outside the
    current directory is refused, because the file must not choose where to write.
    """
    try:
        if path.stat().st_size > MAX_FILE:
            raise ConfigError(f"{path}: a config file has at most {MAX_FILE} bytes")
        text = path.read_text()
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise ConfigError(f"{path}: a config must not contain YAML aliases (*name); write the value instead")
        values = OmegaConf.load(io.StringIO(text))
    except (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: cannot read this config: {' '.join(str(error).split())[:300]}") from None
    if not OmegaConf.is_dict(values):
        raise ConfigError(f"{path}: a config is a mapping of settings, `section: {{key: value}}`")
    content: Any = OmegaConf.to_container(values)
    run = content.get("run")
    run_dir = Path(str(run.get("dir", ""))) if isinstance(run, dict) else Path()
    if run_dir.is_absolute() or ".." in run_dir.parts or "$" in str(run_dir):
        raise ConfigError(f"{path}: run.dir={run_dir} is not below this directory; set it on the command line instead")
    return values


def _refuse_unknown_keys(source: str, values: Any) -> None:
    """Check that every key is a setting, or a section with a mapping as its value.

    Args:
        source: where the values come from, for messages.
        values: the values, an OmegaConf mapping.
    """
    settings = {name: default for name, default, _, _ in walk_settings()}
    sections = {name.rsplit(".", depth)[0] for name in settings for depth in range(1, name.count(".") + 1)}

    def visit(prefix: str, node: Any) -> None:
        for key, value in node.items():
            name = f"{prefix}{key}"
            if name in sections:
                if not isinstance(value, dict):
                    raise ConfigError(f"{source}: {name}={value} is a section; set one of {_members(name, settings)}")
                visit(f"{name}.", value)
            elif isinstance(value, dict) and value and not isinstance(settings.get(name), dict):
                visit(f"{name}.", value)
            elif name not in settings:
                raise ConfigError(f"{source}: unknown setting {name}; nearest: {_nearest(name, settings)}")

    visit("", OmegaConf.to_container(values))


def _members(section: str, settings: dict[str, Any]) -> str:
    return ", ".join(name for name in settings if name.startswith(f"{section}."))


def _nearest(name: str, settings: dict[str, Any]) -> str:
    """Return the setting with the most similar name. A similar last part counts more than a similar section."""
    last = name.rsplit(".", 1)[-1]

    def likeness(candidate: str) -> float:
        whole = difflib.SequenceMatcher(None, name, candidate).ratio()
        return whole + difflib.SequenceMatcher(None, last, candidate.rsplit(".", 1)[-1]).ratio()

    return max(settings, key=likeness)


def _explain(error: Exception, values: Any) -> str:
    """Turn an error of OmegaConf into a message that names the setting, its value and its valid values."""
    key = getattr(error, "full_key", None) or ""
    name = key.partition("[")[0]
    given = OmegaConf.to_container(values, resolve=False)
    for part in name.split("."):
        given = given.get(part) if isinstance(given, dict) else given
    if isinstance(error, InterpolationResolutionError | InterpolationKeyError):
        return f"{name}={given}: {str(error).splitlines()[0]}"
    for setting, default, kind, _ in walk_settings():
        if setting == name:
            if get_origin(kind) is Literal:
                return f"{name}={given}: {choose(given, get_args(kind))}"
            return f"{name}={given} must be {describe_type(kind)}, for example {show(default)}"
    return " ".join(str(error).split())


def choose(given: Any, choices: Sequence[Any]) -> str:
    """Return the end of a message about a value that is not valid: the valid choices, and the nearest of them."""
    close = difflib.get_close_matches(str(given).lower(), [str(c).lower() for c in choices], n=1, cutoff=0.0)
    nearest = next(c for c in choices if str(c).lower() == close[0])
    return f"choose one of {', '.join(str(c) for c in choices)} (nearest: {nearest})"


# ---------------------------------------------------------------------------------------------------------------------
# Checks of values. The checks that need the data set or the architecture are in `gan_dist.wiring.checks`.

_POSITIVE = {
    "train.kimg",
    "train.batch_size",
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
# Largest values of settings in kimg, and of other whole numbers; largest number of entries in a list.
_MOST_KIMG, _MOST_COUNTED, _LONGEST = 1e12, 2**40, 2**10


def check(config: Config) -> None:
    """Check every value by itself, and the values that must fit together whatever the data set is.

    Raises:
        ConfigError: a value is impossible; the message names the setting and the value.
    """
    for name, _, kind, _ in walk_settings():
        value = attrgetter(name)(config)
        if isinstance(value, list) and len(value) > _LONGEST:
            raise ConfigError(f"{name} has {len(value)} entries; at most {_LONGEST}")
        numbers = value if kind in (list[int], list[float]) else [value] if kind in (int, float) else []
        for number in numbers:
            if not isinstance(number, int | float):  # a list inside a list, which OmegaConf does not refuse
                raise ConfigError(f"{name}={value} must be {describe_type(kind)}")
            if not math.isfinite(number) or number < 0:
                raise ConfigError(f"{name}={number} must not be negative, infinite or nan")
            if number == 0 and name in _POSITIVE:
                raise ConfigError(f"{name}={number} must be greater than 0")
            most = _MOST_KIMG if name.endswith("kimg") else _MOST_COUNTED if type(number) is int else math.inf
            if number > _MOST.get(name, most):
                raise ConfigError(f"{name}={number} must be at most {_MOST.get(name, most):,}")
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


# Settings that must not change when a run is resumed: they determine the networks, the optimizers' saved moments, the
# data and the order of the data.
_FIXED = ("model.", "growth.", "data.name", "data.image_size", "data.channels", "data.class_folders", "data.stacked",
          "train.seed", "train.batch_size", "optim.G.name", "optim.D.name")  # fmt: skip


def changes_that_matter(saved: Config, now: Config) -> list[str]:
    """Return `key: old -> new` for every setting that differs but must not change when a run is resumed."""
    names = [name for name, *_ in walk_settings() if name.startswith(_FIXED)]
    pairs = [(name, attrgetter(name)(saved), attrgetter(name)(now)) for name in names]
    return [f"{name}: {old} -> {new}" for name, old, new in pairs if old != new]


def parse_image_size(text: str) -> tuple[int, int]:
    """Return (height, width) in pixels: (64, 64) for "64", and (64, 96) for "64x96".

    Raises:
        ConfigError: the text has another form.
    """
    match = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text)
    if not match or not int(match[1]) or (match[2] and not int(match[2])):
        raise ConfigError(f"data.image_size={text} must be H or HxW in pixels, for example 64 or 64x96")
    return int(match[1]), int(match[2] or match[1])
