"""Arguments that several commands take: an optional config file, and settings as key.sub=value."""

from __future__ import annotations

from pathlib import Path

from gan_dist.errors import ConfigError
from gan_dist.settings.schema import Config
from gan_dist.wiring.own_config import Asked, resolve_settings


def read_config(arguments: list[str]) -> Config:
    """Read the config that the arguments of a command ask for; see `read_arguments`."""
    return read_arguments(arguments).config


def read_arguments(arguments: list[str]) -> Asked:
    """Read the config that the arguments of a command ask for, and what the user has to know about it.

    The settings key.sub=value come first, then those of the run that is to be resumed. If there is no such run, the
    config file comes next. The defaults come last.

    Args:
        arguments: at most one path of a YAML file, and any number of key.sub=value.

    Raises:
        ConfigError: an argument, the file or a value is wrong.
    """
    files = [argument for argument in arguments if "=" not in argument]
    overrides = [argument for argument in arguments if "=" in argument]
    if len(files) > 1:
        raise ConfigError(f"one config file at a time, not {' '.join(files)}; overrides are written key.sub=value")
    if files and files[0].startswith("-"):
        raise ConfigError(f"unknown option {files[0]}; settings are written key.sub=value, --help lists them")
    return resolve_settings(Path(files[0]) if files else None, overrides)
