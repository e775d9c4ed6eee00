"""Arguments that several commands take: a path, an optional config file, and settings as key.sub=value."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from gan_dist.errors import ConfigError
from gan_dist.report.log import log_to
from gan_dist.settings.config import (
    Setting,
    is_outside,
    is_setting,
    load_config,
    make_config,
    read_file,
    read_overrides,
)
from gan_dist.settings.schema import Config

log = logging.getLogger("gan_dist")

# Without a config file a run is that of configs/digits.yaml, which is not installed with the package. These are its
# settings that are not defaults.
DIGITS: list[Setting] = [("loss.r1_gamma", 1.0)]


def path(text: str) -> Path:
    """Return the path that an argument names. A `~` at its beginning is the home directory, even if it was quoted."""
    return Path(os.path.expanduser(text))  # noqa: PTH111, Path.expanduser raises an error for unknown users


def read_config(arguments: list[str]) -> Config:
    """Read the config that the arguments of a command ask for.

    It starts from the config file if one is named, else from the config of the run that is to be resumed, else from the
    settings of configs/digits.yaml. The settings key.sub=value are applied last.

    Args:
        arguments: at most one path of a YAML file, and any number of key.sub=value.

    Raises:
        ConfigError: an argument, the file or a value is wrong.
    """
    files = [argument for argument in arguments if _is_file(argument)]
    words = [argument for argument in arguments if not _is_file(argument)]
    if len(files) > 1:
        raise ConfigError(f"one config file at a time, not {' '.join(files)}; overrides are written key.sub=value")
    overrides = read_overrides(words)
    if files:
        file = path(files[0])
        config = make_config([*_settings_of(file, {name for name, _ in overrides}), *overrides])
        config.run.name = config.run.name or file.stem
        return config
    config = make_config([*DIGITS, *overrides])
    saved = Path(config.run.dir) / "config.yaml"
    if config.resume != "never" and saved.exists():
        config = load_config(saved, words)
    config.run.name = config.run.name or config.data.name
    return config


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


def _settings_of(file: Path, named: set[str]) -> list[Setting]:
    """Return the settings in a config file that the user has named. It may come from a stranger.

    Args:
        file: the file, or a pipe.
        named: the settings on the command line, which replace those in the file.
    """
    settings = read_file(file, pipe=True)
    found = dict(settings)
    if "data.root" not in named and is_outside(found.get("data.root", "")):
        settings.append(("data.download", False))
    if "loss.r1_gamma" not in {*found, *named} and os.environ.get("RANK", "0") == "0":
        log_to(None)
        log.warning(
            "%s: loss.r1_gamma is not set, and its default is 0; it was 1 in earlier versions: write "
            "loss: {r1_gamma: 1} to train as then, or loss: {r1_gamma: 0} so that this line does not appear",
            file,
        )
    return settings
