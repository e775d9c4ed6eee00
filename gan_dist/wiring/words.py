"""Read what is asked for: the words of the command line, or the settings that a Python program gives."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from gan_dist.errors import ConfigError
from gan_dist.installed import find_config
from gan_dist.settings.config import is_setting
from gan_dist.wiring.own_config import Asked, resolve_settings

Settings: TypeAlias = "str | Path | Mapping[str, Any] | Sequence[str | Path | Mapping[str, Any]]"


def expanded(text: str) -> str:
    """Return a word with the home directory for a `~` at its beginning, even if it was quoted."""
    return os.path.expanduser(text)  # noqa: PTH111, Path.expanduser raises an error for unknown users


def read_words(words: Sequence[str]) -> Asked:
    """Read the config that words ask for, and what the user has to know about it.

    The settings key.sub=value come first, then those of the run that is to be resumed. If there is no such run, the
    config file comes next, or the recipe digits without one. The defaults come last.

    Args:
        words: at most one path of a YAML file or name of a recipe, and any number of key.sub=value.

    Raises:
        ConfigError: a word, the file or a value is wrong.
        Unreadable: the settings of the run that is to be resumed could not be read.
    """
    files = [word for word in words if _is_file(word)]
    if len(files) > 1:
        raise ConfigError(f"one config file at a time, not {' '.join(files)}; overrides are written key.sub=value")
    path = find_config(Path(expanded(files[0]))) if files else None
    return resolve_settings(path, [word for word in words if not _is_file(word)])


def as_words(settings: Settings) -> list[str]:
    """Return settings as the words that the command line would get.

    Args:
        settings: a word; or a mapping of settings, such as `{"train": {"kimg": 1}}`; or a list of words and mappings.

    Raises:
        ConfigError: it is something else.
    """
    if isinstance(settings, str | Path):
        return [str(settings)]
    if isinstance(settings, Mapping):
        return list(_words_in(settings))
    if isinstance(settings, Sequence) and all(isinstance(part, str | Path | Mapping) for part in settings):
        return [word for part in settings for word in as_words(part)]
    raise ConfigError(
        f"{settings!r:.100} are no settings: give the name of a recipe, the path of a YAML file, a mapping such as "
        '{"train": {"kimg": 1}}, or a list such as ["dcgan_cifar10", "train.kimg=1"]'
    )


def _words_in(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the settings in a mapping as `key.sub=value`.

    Args:
        settings: sections and settings.
        prefix: the name of its section and a dot.
    """
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and not is_setting(name):
            yield from _words_in(value, f"{name}.")
        elif value is None or isinstance(value, bool | list | tuple | dict):
            yield f"{name}={json.dumps(value, default=str)}"
        else:
            yield f"{name}={value}"


def _is_file(word: str) -> bool:
    """Return whether a word names a config file: it has no `=`, or ends in .yaml and no setting is before the `=`.

    Raises:
        ConfigError: it is an option that does not exist.
    """
    key, equals, _ = word.partition("=")
    if word.endswith((".yaml", ".yml")):
        return not equals or not is_setting(key)
    if word.startswith("-"):
        raise ConfigError(f"unknown option {word}; settings are written key.sub=value, --help lists them")
    return not equals
