"""Find the settings that a run has already, and decide whether they or a config file count at a start.

This file does without torch, so that wrong settings are refused before torch is imported.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gan_dist.checkpoint.find import config_path, list_checkpoints
from gan_dist.checkpoint.run_config import Record, read_run_config, was_changed
from gan_dist.errors import ConfigError, Unreadable, UserError
from gan_dist.installed import RECIPES
from gan_dist.settings.changes import check_allowed, find_changes, in_words
from gan_dist.settings.config import Setting, is_outside, make_config, read_file, read_overrides
from gan_dist.settings.schema import Config

_PLACE = {"run.dir", "resume"}

DIGITS = RECIPES / "digits.yaml"  # a run without a config file is of this recipe


@dataclass(frozen=True)
class OwnConfig:
    """The settings that a run had before this start.

    Attributes:
        settings: the settings in the file that holds them: the run's `config.yaml`, or that of a checkpoint.
        config: all settings, with the defaults.
        record: what is recorded about the start that wrote them; None if nothing is, or if they were changed by hand.
        note: what the user has to know about them; "" for nothing.
    """

    settings: list[Setting]
    config: Config
    record: Record | None
    note: str


@dataclass(frozen=True)
class Asked:
    """What the arguments of a command, or of `gan_dist.train`, ask for.

    Attributes:
        config: all settings.
        file_sha256: SHA-256 of the settings in the config file of the run's first start; "" if there was none.
        notes: what the user has to know about where the settings come from, a line each.
        dataset: a data set that was given from Python; None for the one that `data.name` names.
        callbacks: callbacks that were given from Python.
    """

    config: Config
    file_sha256: str = ""
    notes: tuple[str, ...] = ()
    dataset: Any = None
    callbacks: tuple[Any, ...] = ()


def own_config(run_dir: Path) -> OwnConfig | None:
    """Return the settings of the run in a directory; None if there is no run.

    They are in its `config.yaml`. If that is missing, empty or broken, those of the newest checkpoint count.

    Raises:
        Unreadable: a file is there but could not be read.
    """
    path, record, text, reason = run_dir / "config.yaml", None, "", ""
    try:
        text, record = read_run_config(run_dir)
        reason = f"{path} is {'empty' if path.exists() else 'missing'}"
        if text.strip():
            by_hand = f"{path} was changed by hand since the run wrote it; its settings count"
            return _own(path, record, by_hand if was_changed(text) else "")
    except Unreadable:
        raise
    except UserError as error:
        reason = str(error)
    for checkpoint in reversed(list_checkpoints(run_dir)):
        try:
            its_path = config_path(checkpoint)
            return _own(its_path, None, f"{reason}: the settings of {its_path} count")
        except Unreadable:
            raise
        except UserError:
            continue
    return None


def _own(path: Path, record: Record | None, note: str) -> OwnConfig:
    """Read the settings of a run from the file that holds them."""
    settings = read_file(path, of_run=True)
    return OwnConfig(settings, make_config(settings), record, note)


def resolve_settings(path: Path | None, overrides: Sequence[str]) -> Asked:
    """Decide what counts for each setting, and read it.

    Words on the command line come first, then the settings of the run that is to go on, then the config file, then the
    defaults. So the file counts only for a new run. It may be a pipe, so it is read only once.

    Args:
        path: the config file that the arguments name; None for none.
        overrides: settings as `key.sub=value`.

    Raises:
        ConfigError: the file or a value is wrong.
        Unreadable: the run's own settings are there but could not be read.
    """
    words, problem = read_overrides(overrides), None
    named = {name for name, _ in words}
    try:
        in_file = read_file(path, pipe=True) if path else []
    except ConfigError as error:
        if not named >= _PLACE:
            raise
        in_file, problem = [], error  # a run that is there goes on, although the file is gone or broken
    start = make_config(setting for setting in (*in_file, *words) if setting[0] in _PLACE)
    own = own_config(Path(start.run.dir)) if start.resume != "never" else None
    sha256 = hashlib.sha256(repr(in_file).encode()).hexdigest() if path else ""
    if not own:
        if problem:
            raise problem
        config = make_config([*(_of_stranger(in_file, named) if path else read_file(DIGITS)), *words])
        config.run.name = config.run.name or (path.stem if path else config.data.name)
        check_allowed(config.allow_changes)
        return Asked(config, sha256, _notes(path, in_file, named))
    config = make_config([*own.settings, *(word for word in words if word[0] not in _PLACE)])
    config.run.dir, config.resume = start.run.dir, start.resume
    config.run.name = config.run.name or config.data.name
    check_allowed(config.allow_changes)
    if config.train.precision == "auto":
        config.train.precision = own.config.train.precision
    notes = [own.note] if own.note else []
    first = own.record.file_sha256 if own.record else sha256
    if path and not (own.record and first == sha256):
        notes += _about_file(path, problem, [*_of_stranger(in_file, named), *words], config)
    return Asked(config, first, tuple(notes))


def _of_stranger(settings: list[Setting], named: set[str]) -> list[Setting]:
    """Return the settings of a config file, which may come from a stranger: it must not choose where to download to.

    Args:
        settings: the settings in the file.
        named: the settings on the command line, which replace those in the file.
    """
    if "data.root" in named or not is_outside(dict(settings).get("data.root", "")):
        return settings
    return [*settings, ("data.download", False)]


def _notes(path: Path | None, settings: list[Setting], named: set[str]) -> tuple[str, ...]:
    """Say if a config file may rely on a default that was another one in earlier versions."""
    if not path or "loss.r1_gamma" in {*dict(settings), *named}:
        return ()
    return (
        f"{path}: loss.r1_gamma is not set, and its default is 0; it was 1 in earlier versions: write "
        "loss: {r1_gamma: 1} to train as then, or loss: {r1_gamma: 0} so that this line does not appear",
    )


def _about_file(path: Path, problem: ConfigError | None, settings: list[Setting], config: Config) -> list[str]:
    """Say that a config file does not count, because the run has its own settings; [] if both agree.

    Args:
        path: the file.
        problem: why it could not be read; None if it could.
        settings: its settings, and those on the command line.
        config: the settings of the run.
    """
    try:
        if problem:
            raise problem
        other = make_config(settings)
    except ConfigError as error:
        return [
            f"{path} does not count, as the run goes on with its own settings; it could not be read anyway: {error}"
        ]
    changes = find_changes(other, config)
    if other.train.precision == "auto":
        changes.pop("train.precision", None)
    if not changes:
        return []
    return [
        f"{path} was changed since the first start, or is another file; it does not count, as the run goes on with its "
        f"own settings (file -> run): {in_words(changes)}; to change a setting of the run, name it on the command line"
    ]
