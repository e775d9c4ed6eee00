"""The format of the settings that a run writes, and how those of earlier formats are read.

A run's `config.yaml` says its format. An earlier one is migrated in memory, from each format to the next one. A
migration renames settings, and gives a new setting the value that means what the code did before. To change the format,
raise FORMAT, append a migration to MIGRATIONS, and commit a run of the format before to `tests/old_runs/`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gan_dist.errors import ConfigError, too_new
from gan_dist.settings.values import Node, Scalar, typed

FORMAT = 2
Settings = dict[str, Node]  # the sections of a config file

# Names that settings had before, and their present names. On the command line and in a user's file the old ones are
# refused; in a run's own settings a migration renames them.
RENAMED = {"loss.r1_interval": "loss.penalty_interval"}


def _without_graphs(settings: Settings) -> Settings:
    """From 1 to 2: one setting has another name, and steps can be captured as CUDA graphs, which none was before."""
    settings = _rename(settings, "loss.r1_interval", "loss.penalty_interval")
    return {**settings, "train": {"cuda_graphs": Scalar("never"), **_section(settings, "train")}}


MIGRATIONS: list[Callable[[Settings], Settings]] = [_without_graphs]


def migrated(settings: Settings, path: Path, of_run: bool) -> Settings:
    """Return the settings of a config file in today's format, without the number of the format.

    Args:
        settings: the sections of the file.
        path: the file, for messages.
        of_run: a run has written the file. If there is no number then, it is of the first format; another file without
            a number is of today's.

    Raises:
        ConfigError: the format is none.
        Unreadable: the format is newer than FORMAT.
    """
    settings = dict(settings)
    given = settings.pop("format", Scalar("1" if of_run else str(FORMAT)))
    try:
        number = typed(given, int)
    except ValueError:
        number = 0
    if not 0 < number < 10**9:
        raise ConfigError(f"{path}: format must be a whole number, which a run writes")
    if number > FORMAT:
        raise too_new(path, number, FORMAT)
    for migration in MIGRATIONS[number - 1 :]:
        settings = migration(settings)
    return settings


def _section(settings: Settings, name: str) -> dict[str, Node]:
    """A section; {} if it is none, which a later check refuses."""
    section = settings.get(name)
    return section if isinstance(section, dict) else {}


def _rename(settings: Settings, old: str, new: str) -> Settings:
    """Return the settings with another name for a setting of one section."""
    section, _, before = old.partition(".")
    after = new.removeprefix(f"{section}.")
    if before not in _section(settings, section):
        return settings
    renamed = {after if key == before else key: value for key, value in _section(settings, section).items()}
    return {**settings, section: renamed}
