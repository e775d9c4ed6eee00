"""What the commands share to read their arguments: options, paths, a config file, and settings as key.sub=value."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from gan_dist.errors import ConfigError
from gan_dist.settings.schema import Config
from gan_dist.settings.values import Scalar, typed
from gan_dist.wiring.words import expanded, read_words


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


def read_config(arguments: list[str]) -> Config:
    """Read the config that the arguments of a command ask for; see `gan_dist.wiring.words.read_words`."""
    return read_words(arguments).config
