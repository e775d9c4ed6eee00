"""Arguments that several commands take: an optional config file, and settings as key.sub=value."""

from __future__ import annotations

from pathlib import Path

from gan_dist.errors import ConfigError
from gan_dist.settings.config import load_config
from gan_dist.settings.schema import Config


def read_config(arguments: list[str]) -> Config:
    """Read the config that the arguments of a command ask for.

    It starts from the config file if one is named, else from the config of the run that is to be resumed, else from the
    defaults. The settings key.sub=value are applied last.

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
    path = Path(files[0]) if files else None
    config = load_config(path, overrides)
    saved = Path(config.run.dir) / "config.yaml"
    if path is None and config.resume != "never" and saved.is_file():
        config = load_config(saved, overrides)
    config.run.name = config.run.name or (path.stem if path else config.data.name)
    return config
