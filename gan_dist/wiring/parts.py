"""The parts that the settings of a run name: whether they exist, their arguments, and which code they are."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from gan_dist.checkpoint.find import list_checkpoints, read_facts
from gan_dist.checkpoint.state import State
from gan_dist.data.datasets import DATASETS
from gan_dist.engine.callbacks.users import CALLBACKS, Context, UsersCallback
from gan_dist.errors import ConfigError, UserError
from gan_dist.game.augment import AUGMENTATIONS
from gan_dist.game.losses import LOSSES
from gan_dist.game.regularizers import PENALTIES
from gan_dist.metrics.extractors import EXTRACTORS
from gan_dist.metrics.features import METRICS
from gan_dist.models import DISCRIMINATORS, GENERATORS
from gan_dist.parallel.distributed import Distributed
from gan_dist.parts import UNKNOWN, Table
from gan_dist.report.trackers import TRACKERS
from gan_dist.report.tracking import Tracker
from gan_dist.settings.config import choose
from gan_dist.settings.schema import Config, Model, describe_type, show

log = logging.getLogger("gan_dist")

MAX_ARG = 4096  # largest number in `model.g_args` and `model.d_args`, for example of blocks or channels


class Named(NamedTuple):
    """A part that a setting names.

    Attributes:
        setting: the setting.
        name: the name of the part.
        table: the parts that it can name.
        args_setting: the setting that holds the part's arguments.
        args: these arguments.
    """

    setting: str
    name: str
    table: Table
    args_setting: str
    args: Any


def named_parts(config: Config) -> list[Named]:
    """Return all parts that the settings name."""
    data, loss, train, metrics = config.data, config.loss, config.train, config.metrics
    augment = {name: train.augment_args.get(name, {}) for name in train.augment}
    several: list[tuple[str, str, Table, Mapping[str, Any]]] = [
        ("loss.penalties", "loss.penalties", PENALTIES, loss.penalties),
        ("train.augment", "train.augment_args", AUGMENTATIONS, augment),
        ("metrics.extra", "metrics.extra", METRICS, metrics.extra),
        ("tracking.extra", "tracking.extra", TRACKERS, config.tracking.extra),
        ("callbacks", "callbacks", CALLBACKS, config.callbacks),
    ]
    return [
        Named("data.name", data.name, DATASETS, "data.args", data.args),
        *_networks(config.model),
        Named("loss.name", loss.name, LOSSES, "loss.args", loss.args),
        Named("metrics.extractor", metrics.extractor, EXTRACTORS, "metrics.args", metrics.args),
        *(
            Named(setting, name, table, f"{args_setting}.{name}", args)
            for setting, args_setting, table, chosen in several
            for name, args in chosen.items()
        ),
    ]


def _networks(model: Model) -> list[Named]:
    g, d = ("model.g_name" if model.g_name else "model.name"), ("model.d_name" if model.d_name else "model.name")
    return [
        Named(g, model.name_of_G, GENERATORS, "model.g_args", model.g_args),
        Named(d, model.name_of_D, DISCRIMINATORS, "model.d_args", model.d_args),
    ]


def check_names(parts: Sequence[Named], environment: Callable[[], Mapping[str, str]] = dict) -> None:
    """Check that parts exist, and that their arguments do.

    Args:
        parts: the parts.
        environment: returns `environment` of the checkpoint that is used, {} for none. It is called if a part is
            missing.

    Raises:
        ConfigError: a part does not exist; the message names the setting, its value and the nearest valid value, or, if
            the run of the checkpoint had the part, where that came from. Or an argument is unknown, is missing, or has
            the wrong type or size.
    """
    for part in parts:
        if part.name not in part.table:
            raise _unknown(part, environment())
        _check_arguments(part)


def check_networks(model: Model, environment: Mapping[str, str]) -> None:
    """Check that the architectures of a checkpoint exist, and the arguments that they get.

    Args:
        model: the settings of the checkpoint.
        environment: `environment` of the checkpoint.

    Raises:
        ConfigError: an architecture or an argument does not exist.
    """
    check_names(_networks(model), lambda: environment)


def environment_of_run(config: Config) -> dict[str, str]:
    """Return `environment` of the newest readable checkpoint of the run that is to go on; {} for a new run."""
    if config.resume == "never" or not config.run.dir:
        return {}
    for checkpoint in reversed(list_checkpoints(Path(config.run.dir))):
        try:
            environment: dict[str, str] = read_facts(checkpoint)["environment"]
        except UserError:
            continue
        return environment
    return {}


def _unknown(part: Named, environment: Mapping[str, str]) -> ConfigError:
    """The error about a part that does not exist here."""
    given = f"{part.setting}={part.name}"
    recorded = environment.get(_key(part), "")
    if recorded:
        module, plugins = recorded.split()[0], environment.get("plugins")
        how = f"add plugins=[{plugins}], or in Python import it first" if plugins else "install or import that first"
        return ConfigError(f"{given}: this run has it from the module {module}: {how}")
    if part.table is GENERATORS and part.name in DISCRIMINATORS:
        return ConfigError(f"{given} has a discriminator only: set model.d_name={part.name}, and model.name to G's")
    if part.table is DISCRIMINATORS and part.name in GENERATORS:
        return ConfigError(f"{given} has a generator only: set model.g_name={part.name}, and model.name to D's")
    return ConfigError(f"{given}: {choose(part.name, list(part.table))}" if [*part.table] else _none(part))


def _none(part: Named) -> str:
    return (
        f"{part.setting}={part.name}: there is no {part.table.kind} of this name; register yours by "
        f"register_{part.table.kind}, and name its module in plugins=[…]"
    )


def code_of_parts(config: Config) -> dict[str, str]:
    """Return for each part that is not of this package which code it is, as `code_of`, and the plugins' names."""
    found = {_key(part): _where(part.table, part.name) for part in named_parts(config)}
    plugins = {"plugins": ",".join(config.plugins)} if config.plugins else {}
    return {key: where for key, where in found.items() if where} | plugins


def _key(part: Named) -> str:
    return f"{part.setting}={part.name}"


_said_unknown: set[tuple[str, str]] = set()


def _where(table: Table, name: str) -> str:
    where = table.where(name)
    if where.endswith(UNKNOWN) and (table.kind, name) not in _said_unknown:
        _said_unknown.add((table.kind, name))
        log.warning("the source of the %s %s is unknown, so changes of it will not be noticed", table.kind, name)
    return where


def users_callbacks(
    config: Config, given: Sequence[Any], run_dir: Path, tracker: Tracker, facts: dict[str, Any], dist: Distributed
) -> list[UsersCallback]:
    """Make the users' callbacks: those that the settings name, then those that were given from Python.

    Args:
        config: the settings.
        given: the callbacks that were given from Python.
        run_dir: the run directory.
        tracker: the run's trackers.
        facts: what checkpoints record, with the callbacks' states.
        dist: the processes.
    """
    calls = {name: CALLBACKS[name](**args) for name, args in config.callbacks.items()}
    for call in given:
        name = call.__name__ if isinstance(call, type) else getattr(call, "name", type(call).__name__)
        if name in calls:
            raise ConfigError(f"two callbacks have the name {name}: give one of them another attribute `name`")
        calls[name] = call
    settings = asdict(config)

    def context(state: State) -> Context:
        metrics, networks = dict(state.metrics), (state.G, state.D, state.G_ema)
        return Context(run_dir, settings, state.nimg, metrics, *networks, log, tracker, dist.is_main)

    return [UsersCallback(name, call, context, facts) for name, call in calls.items()]


def _check_arguments(part: Named) -> None:
    """Check that a part has these keyword-only arguments, and that each value has the type of its default.

    A default of None stands for any type. Numbers for networks must be in 0 … MAX_ARG, because a checkpoint may come
    from a stranger.
    """
    key, given, code = part.args_setting, part.args, part.table.code(part.name)
    if not isinstance(given, dict):
        raise ConfigError(f"{key}={given}: write the arguments of {part.name} as a mapping, {{}} for none")
    parameters = [*inspect.signature(code).parameters.values()] if callable(code) else []
    positional = {p.name for p in parameters if p.default is not p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
    positional -= {"widths"}
    defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    for name, value in given.items():
        if name in positional:
            raise ConfigError(f"{key}: {name} is not keyword-only in {part.name}: put a * before it in its code")
        if name not in defaults:
            advice = choose(name, list(defaults)) if defaults else f"{part.name} has none"
            raise ConfigError(f"{key}: unknown argument {name}; {advice}")
        default = defaults[name]
        kind = type(default)
        any_type = default is inspect.Parameter.empty or default is None
        if not any_type and type(value) not in ((int, float) if kind is float else (kind,)):
            words = "a list" if kind is list else "a mapping" if kind is dict else describe_type(kind)
            raise ConfigError(f"{key}: {name}={show(value)} must be {words}, for example {show(default)}")
        of_network = part.table in (GENERATORS, DISCRIMINATORS)
        if of_network and isinstance(value, int | float) and not 0 <= value <= MAX_ARG:
            raise ConfigError(f"{key}: {name}={value} must be from 0 to {MAX_ARG}")
    missing = [name for name, default in defaults.items() if default is inspect.Parameter.empty and name not in given]
    if missing:
        raise ConfigError(f"{key}: {part.name} needs the argument {missing[0]}: set {key}.{missing[0]}=…")
