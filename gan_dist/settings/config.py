"""Read settings from a file and the command line, put them over the defaults, and refuse impossible ones."""

from __future__ import annotations

import copy
import difflib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, get_args, get_origin
from urllib.parse import quote, unquote

import yaml
from omegaconf import DictConfig, OmegaConf

from gan_dist.errors import ConfigError
from gan_dist.installed import RECIPES
from gan_dist.settings.checks import check
from gan_dist.settings.files import read_text
from gan_dist.settings.formats import FORMAT, RENAMED, migrated
from gan_dist.settings.schema import PATHS, Config, Run, describe_type, show, walk_settings
from gan_dist.settings.values import Node, Scalar, looks_typed, node_of, read_yaml, shown, typed

_EXAMPLES = {list: "[first,second]", dict: "'{name: value}'"}  # of settings that are empty by default
MAX_DOTS = 5  # names inside a mapping that are separated by dots: as many as the stored config can be nested deeper
Setting = tuple[str, Any]  # dotted name and value, which has the type that the schema names


def load_config(path: Path | None, overrides: Sequence[str] = (), of_run: bool = False) -> Config:
    """Read the settings of a run: the defaults, then the file, then the overrides. Every value is checked.

    Args:
        path: a YAML file; None for no file.
        overrides: settings as `key.sub=value`.
        of_run: see `read_file`.

    Raises:
        ConfigError: the file cannot be read, a setting does not exist, or a value is impossible. The message names the
            setting, its value and the nearest valid one.
    """
    return make_config([*(read_file(path, of_run=of_run) if path else ()), *read_overrides(overrides)])


def make_config(settings: Iterable[Setting]) -> Config:
    """Put settings over the defaults, one after the other, and check every value.

    A mapping is added to the one before it, and an empty mapping clears it. A `~` at the beginning of a path becomes
    the home directory.

    Args:
        settings: from `read_file` and `read_overrides`.

    Raises:
        ConfigError: a value is impossible, or does not fit another one.
    """
    merged = copy.deepcopy(_defaults())
    for name, value in settings:
        value = os.path.expanduser(value) if name in PATHS else value  # noqa: PTH111, Path() would change the text
        OmegaConf.update(merged, name, _texts(value, quote), merge=isinstance(value, dict) and value != {})
    config = OmegaConf.to_object(merged)
    assert isinstance(config, Config)
    for name in _kinds():
        section, _, key = name.rpartition(".")
        owner = attrgetter(section)(config) if section else config
        setattr(owner, key, _texts(getattr(owner, key), unquote))
    check(config)
    return config


@cache
def _defaults() -> DictConfig:
    return OmegaConf.structured(Config)


def _texts(value: Any, change: Callable[..., str]) -> Any:
    """Return a value with each text in it changed.

    Texts are percent-encoded while OmegaConf has them, because it would take `${name}` and `???` for its own words: a
    config of a stranger could read environment variables.

    Args:
        value: a setting's value.
        change: urllib's quote or unquote.
    """
    if isinstance(value, dict):
        return {key: _texts(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_texts(item, change) for item in value]
    return change(value, errors="surrogatepass") if isinstance(value, str) else value


def as_yaml(config: Config) -> str:
    """Return all settings as YAML, with the number of their format.

    `load_config` reads the same settings from a file with this text.
    """
    return yaml.dump(
        {"format": FORMAT, **asdict(config)}, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**30
    )


class _Dumper(yaml.SafeDumper):
    """Writes every text so that `read_yaml` gives back the same characters."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        quotes = '"' if not text.isprintable() else "'" if looks_typed(text) else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=quotes)


_Dumper.add_representer(str, _Dumper.represent_text)


def for_file(config: Config) -> Config:
    """Return the settings to save with a run: without those that belong to one start of the run.

    These are `init.run`, `run.dir`, `plugins`, `resume` and `allow_changes`.
    """
    run, init = Run(name=config.run.name), replace(config.init, run="")
    return replace(config, run=run, init=init, plugins=[], resume="never", allow_changes=[])


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def read_file(path: Path, pipe: bool = False, of_run: bool = False) -> list[Setting]:
    """Read the settings in a config file, which may come from a stranger.

    Args:
        path: the file.
        pipe: the user named this path, so that it may be a pipe too.
        of_run: a run has written the file; see `gan_dist.settings.formats.migrated`.

    Raises:
        ConfigError: it cannot be read, or it asks for what it must not. A file must not choose to write outside the
            current directory, so that `run.dir` has to be below it.
    """
    try:
        node = read_yaml(read_text(path, pipe))
    except (OSError, ValueError, yaml.YAMLError) as error:
        known = ""
        if isinstance(error, FileNotFoundError):
            near = difflib.get_close_matches(path.name, [recipe.stem for recipe in RECIPES.glob("*.yaml")], n=1)
            known = "; gan-dist recipes lists what needs no file" + (f" (nearest: {near[0]})" if near else "")
        raise ConfigError(f"{path}: cannot read this config: {' '.join(str(error).split())[:300]}{known}") from None
    if not isinstance(node, dict):
        raise ConfigError(f"{path}: a config is a mapping of settings, `section: {{key: value}}`")
    settings = list(_settings_in(str(path), migrated(node, path, of_run)))
    run_dir = dict(settings).get("run.dir", "")
    if is_outside(run_dir):
        raise ConfigError(f"{path}: run.dir={run_dir} is not below this directory; set it on the command line instead")
    for name in ("allow_changes", "init.run", "plugins"):
        if dict(settings).get(name):
            raise ConfigError(f"{path}: {name} belongs to one start of a run: name it on the command line instead")
    return settings


def is_outside(path: str) -> bool:
    """Return whether a path may lead out of the current directory."""
    return path.startswith("~") or Path(path).is_absolute() or ".." in Path(path).parts


def read_overrides(overrides: Sequence[str]) -> list[Setting]:
    """Read settings as `key.sub=value`. A list is written [a,b] and a mapping {a: 1}; a text as it is.

    Raises:
        ConfigError: a setting does not exist, or its value has another type.
    """
    return [_override(text) for text in overrides]


def plugins_in(overrides: Sequence[str]) -> list[str]:
    """Return the modules that `plugins` names among settings written as `key.sub=value`; [] for none."""
    return next((value for name, value in reversed(read_overrides(overrides)) if name == "plugins"), [])


def _override(text: str) -> Setting:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"{text!r}: an override is written key.sub=value, for example train.kimg=500")
    name, inside = _split(key)
    if name not in _kinds() or len(inside) > MAX_DOTS:
        raise ConfigError(f"command line: {_unknown(key, value)}")
    try:
        node = node_of(value, Any if inside else _kinds()[name])
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{text[:100]!r}: cannot read this value: {' '.join(str(error).split())[:300]}") from None
    for part in reversed(inside):  # model.g_args.blocks=2 is model.g_args={blocks: 2}
        node = {part: node}
    return name, _value("command line", name, node)


def is_setting(key: str) -> bool:
    """Return whether `key` is the name of a setting, or of a part of one that is a mapping, as model.g_args.blocks."""
    return _split(key)[0] in _kinds()


def _split(key: str) -> tuple[str, list[str]]:
    """Return the setting that a key names, and the names inside its mapping."""
    for name, kind in _kinds().items():
        if get_origin(kind) is dict and key.startswith(f"{name}."):
            return name, key.removeprefix(f"{name}.").split(".")
    return key, []


@cache
def _kinds() -> dict[str, Any]:
    """The type of every setting, by its name."""
    return {name: kind for name, _, kind, _ in walk_settings()}


def _settings_in(source: str, node: dict[str, Node], prefix: str = "") -> Iterator[Setting]:
    """Yield the settings in a mapping of a file.

    Args:
        source: the file, for messages.
        node: the mapping.
        prefix: the name of its section and a dot.
    """
    for key, value in node.items():
        name = f"{prefix}{key}"
        if "." in key:
            raise ConfigError(f"{source}: {name}: in a file, write `section: {{key: value}}` instead of a dot")
        if name in _kinds():
            yield name, _value(source, name, value)
        elif isinstance(value, dict) and value:
            yield from _settings_in(source, value, f"{name}.")
        elif not (isinstance(value, dict) and _members(name)):
            raise ConfigError(f"{source}: {_unknown(name, shown(value))}")


def _value(source: str, name: str, node: Node) -> Any:
    """Return the value of a setting in the type that the schema names; the error says which values are valid."""
    kind = _kinds()[name]
    try:
        return typed(node, kind)
    except ValueError as error:
        given = f"{source}: {name}={shown(node)}"
        if str(error):
            raise ConfigError(f"{given} {error}") from None
        if get_origin(kind) is Literal and isinstance(node, Scalar):
            raise ConfigError(f"{given}: {choose(node.text, get_args(kind))}") from None
        default = next(default for setting, default, _, _ in walk_settings() if setting == name)
        example = show(default) if default or not isinstance(default, list | dict) else _EXAMPLES[get_origin(kind)]
        raise ConfigError(f"{given} must be {describe_type(kind)}, for example {example}") from None


def _unknown(name: str, value: str) -> str:
    """Say that no setting has this name."""
    name, value = name[:100], value[:100]
    if members := _members(name):
        return f"{name}={value} is a section; set one of {', '.join(members)}"
    if name in RENAMED:
        return f"{name} is called {RENAMED[name]} now: write {RENAMED[name]}={value}"
    return f"unknown setting {name}; nearest: {_nearest(name)}"


def _members(section: str) -> list[str]:
    return [name for name in _kinds() if name.startswith(f"{section}.")]


def _nearest(name: str) -> str:
    """Return the setting with the most similar name. A similar last part counts more than a similar section."""
    last = name.rsplit(".", 1)[-1]

    def likeness(candidate: str) -> float:
        whole = difflib.SequenceMatcher(None, name, candidate).ratio()
        return whole + difflib.SequenceMatcher(None, last, candidate.rsplit(".", 1)[-1]).ratio()

    return max(_kinds(), key=likeness)


def choose(given: Any, choices: Sequence[Any]) -> str:
    """Return the end of a message about a value that is not valid: the valid choices, and the nearest of them."""
    close = difflib.get_close_matches(str(given)[:100].lower(), [str(c).lower() for c in choices], n=1, cutoff=0.0)
    nearest = next(c for c in choices if str(c).lower() == close[0])
    return f"choose one of {', '.join(str(c) for c in choices)} (nearest: {nearest})"
