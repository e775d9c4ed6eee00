"""What the commands share to read their arguments: options, paths, a config file, and settings as key.sub=value."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import NoReturn

from gan_dist.errors import ConfigError
from gan_dist.installed import find_config
from gan_dist.settings.config import is_setting
from gan_dist.settings.schema import Config
from gan_dist.settings.values import Scalar, typed
from gan_dist.wiring.own_config import Asked, resolve_settings


class Parser(argparse.ArgumentParser):
    """A parser of a command's options. It refuses wrong ones by a ConfigError, whose message is one line."""

    def error(self, message: str) -> NoReturn:
        """Refuse the arguments; argparse calls this with what is wrong."""
        raise ConfigError(f"{message}; {self.prog} --help explains the arguments")


def whole(text: str) -> int:
    """Return the whole number that an argument is. As in settings, it is decimal: 010 and 1_0 are no numbers."""
    return int(_number(text, int))


def decimal(text: str) -> float:
    """Return the decimal number that an argument is, by the rules of the settings."""
    return float(_number(text, float))


def _number(text: str, kind: type[int] | type[float]) -> int | float:
    try:
        number: int | float = typed(Scalar(text), kind)
    except ValueError as error:
        what = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"it {error}" if str(error) else f"{text} is not {what}") from None
    return number


def path(text: str) -> Path:
    """Return the path that an argument names; see `expanded`."""
    return Path(expanded(text))


def expanded(text: str) -> str:
    """Return an argument with the home directory for a `~` at its beginning, even if it was quoted."""
    return os.path.expanduser(text)  # noqa: PTH111, Path.expanduser raises an error for unknown users


def read_config(arguments: list[str]) -> Config:
    """Read the config that the arguments of a command ask for; see `read_arguments`."""
    return read_arguments(arguments).config


def read_arguments(arguments: list[str]) -> Asked:
    """Read the config that the arguments of a command ask for, and what the user has to know about it.

    The settings key.sub=value come first, then those of the run that is to be resumed. If there is no such run, the
    config file comes next, or the recipe digits without one. The defaults come last.

    Args:
        arguments: at most one path of a YAML file or name of a recipe, and any number of key.sub=value.

    Raises:
        ConfigError: an argument, the file or a value is wrong.
        Unreadable: the settings of the run that is to be resumed could not be read.
    """
    files = [argument for argument in arguments if _is_file(argument)]
    words = [argument for argument in arguments if not _is_file(argument)]
    if len(files) > 1:
        raise ConfigError(f"one config file at a time, not {' '.join(files)}; overrides are written key.sub=value")
    return resolve_settings(find_config(path(files[0])) if files else None, words)


def _is_file(argument: str) -> bool:
    """Return whether an argument names a config file: it has no `=`, or ends in .yaml and no setting is before the `=`.

    Raises:
        ConfigError: it is an option that does not exist.
    """
    key, equals, _ = argument.partition("=")
    if argument.endswith((".yaml", ".yml")):
        return not equals or not is_setting(key)
    if argument.startswith("-"):
        raise ConfigError(f"unknown option {argument}; settings are written key.sub=value, --help lists them")
    return not equals
