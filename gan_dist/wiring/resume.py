"""Compare a run that is to go on with what it has trained so far: its settings, its data, and what it runs on.

A difference that would change the meaning of what was trained is refused, unless `allow_changes` names it. A difference
with which the networks or the optimizers' moments could not be loaded is always refused. All others are said.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from gan_dist.checkpoint.find import config_path, nimg_of, read_facts
from gan_dist.checkpoint.moments import moments_of
from gan_dist.checkpoint.run_config import Record
from gan_dist.data import DataInfo
from gan_dist.data.in_memory import Images
from gan_dist.errors import ConfigError
from gan_dist.settings.changes import CONTENT, find_changes, in_words, kept_only
from gan_dist.settings.config import load_config
from gan_dist.settings.schema import Config
from gan_dist.wiring.checks import check_content
from gan_dist.wiring.iteration import optimizer_schedule, total_nimg
from gan_dist.wiring.networks import make_optimizer, networks_on_meta
from gan_dist.wiring.own_config import OwnConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Before:
    """What a run was, up to the checkpoint from which it goes on.

    Attributes:
        checkpoint: the checkpoint.
        config: the settings that wrote the checkpoint.
        accepted: the settings of the last start. They differ from `config` by what was changed then, if the run ended
            before its next checkpoint.
        record: what is recorded about the last start.
    """

    checkpoint: Path
    config: Config
    accepted: Config
    record: Record

    @property
    def accepted_data(self) -> tuple[int, str]:
        """Number of images and key of the data at the last start, if it went on from this checkpoint; else 0, ""."""
        there = self.record.starts_from == self.checkpoint.name
        return (self.record.num_images, self.record.data_key) if there else (0, "")


def read_before(checkpoint: Path, own: OwnConfig | None) -> Before:
    """Read what a run was.

    The run's `config.yaml` is trusted if the program has written it and if it belongs to the checkpoint: a checkpoint
    that was written after the last start has the settings of that start. Otherwise the checkpoint's own settings count.

    Args:
        checkpoint: the checkpoint from which the run goes on.
        own: the run's own settings; None if there are none.

    Raises:
        UserError: the checkpoint's settings are damaged or cannot be read.
    """
    saved = load_config(config_path(checkpoint), of_run=True)
    if own and own.record:
        written_later = not own.record.starts_from or nimg_of(checkpoint) > int(own.record.starts_from)
        if not (written_later and find_changes(saved, own.config)):
            return Before(checkpoint, saved, own.config, own.record)
    return Before(checkpoint, saved, saved, Record())


def is_finished(checkpoint: Path, config: Config) -> bool:
    """Tell if nothing is left to do after a checkpoint: neither training nor the evaluation at the end."""
    facts = read_facts(checkpoint)
    evaluated = not config.metrics.every_kimg or facts["metrics_nimg"] == facts["nimg"]
    return bool(facts["nimg"] >= total_nimg(config) and evaluated)


def check_settings(before: Before, config: Config) -> None:
    """Refuse settings that would change the meaning of what a run has trained.

    Args:
        before: what the run was.
        config: the settings now.

    Raises:
        ConfigError: a setting differs that must not; the message lists each difference as `old -> new`.
    """
    changes = find_changes(before.accepted, config)
    refused = {name: pair for name, pair in kept_only(changes).items() if name not in config.allow_changes}
    if before.accepted.train.precision == "auto":
        refused.pop("train.precision", None)
    if refused:
        raise ConfigError(_refusal(before.checkpoint, in_words(refused), list(refused)))


def say_changes(before: Before, config: Config) -> None:
    """Say which settings are not those of the run so far.

    Args:
        before: what the run was.
        config: the settings now, which `check_settings` has accepted.
    """
    changes = find_changes(before.accepted, config) | find_changes(before.config, config)
    if changes:
        log.warning("these settings are not those of the run so far: %s", in_words(changes))
    for side in ("G", "D"):
        _say_jump(side, before, config)


def _refusal(checkpoint: Path, changes: str, names: list[str]) -> str:
    return (
        f"{checkpoint} belongs to another run: {changes}; this would change the meaning of what was trained: start "
        f"a new run in another run.dir, or add allow_changes=[{','.join(names)}] to go on all the same"
    )


def _say_jump(side: str, before: Before, config: Config) -> None:
    """Say if a learning rate jumps because its schedule is as long as the run, and the run has another length now."""
    old, now = getattr(before.config.optim, side), getattr(config.optim, side)
    totals = total_nimg(before.config), total_nimg(config)
    as_long_as_the_run = now.schedule != "constant" and not old.schedule_kimg and not now.schedule_kimg
    if not as_long_as_the_run or old.schedule != now.schedule or totals[0] == totals[1]:
        return
    nimg = nimg_of(before.checkpoint)
    rates = [optimizer_schedule(old, total)(nimg)["lr"] for total in totals]
    gammas = " (and the gammas with it)" if side == "D" and config.loss.gamma_decay != 1 else ""
    if rates[0] != rates[1]:
        log.warning(
            "train.kimg: %g -> %g changes the %s schedule of optim.%s: at %g kimg the learning rate jumps from %.3g to "
            "%.3g%s; optim.%s.schedule_kimg=%g keeps the old schedule",
            before.config.train.kimg, config.train.kimg, now.schedule, side, nimg / 1000, *rates, gammas, side,
            before.config.train.kimg,
        )  # fmt: skip


def check_fit(before: Before, config: Config, info: DataInfo) -> None:
    """Check that a checkpoint can be loaded with the settings now, and that the data set has as many images.

    Args:
        before: what the run was.
        config: the settings now, checked by `gan_dist.wiring.checks.check_parts`.
        info: the data set now.

    Raises:
        ConfigError: they do not fit; the message lists what differs as `old -> new`.
    """
    facts = read_facts(before.checkpoint)
    wrong = {**_other_moments(before.config, config), **_other_shapes(before.config, config, facts, info)}
    if wrong:
        changes = "; ".join(f"{what}: {old} -> {new}" for what, (old, new) in wrong.items())
        raise ConfigError(
            f"{before.checkpoint} belongs to another run: {changes}; its weights or moments cannot be loaded then, so "
            "allow_changes cannot allow it: start a new run in another run.dir"
        )
    if info.num_images not in (facts["num_images"], before.accepted_data[0]):
        change = f"images in the data set: {facts['num_images']} -> {info.num_images}"
        if CONTENT not in config.allow_changes:
            raise ConfigError(_refusal(before.checkpoint, change, [CONTENT]))
        log.warning("the run goes on with other images than so far: %s", change)


def check_same_content(
    checkpoint: Path, key: str, accepted: str, config: Config, dataset: Images, info: DataInfo
) -> list[str]:
    """Check that a run is resumed with the same images, after the data are loaded.

    Args:
        checkpoint: the checkpoint from which the run goes on.
        key: the key of the data set now; see `gan_dist.data.key`.
        accepted: the key of other images that an earlier start from this checkpoint was allowed; "" for none.
        config: the settings now.
        dataset: the data set now.
        info: its properties.

    Returns:
        Sentences about what differs although the run may go on.

    Raises:
        ConfigError: the images differ.
    """
    if key == accepted:
        return []
    try:
        return check_content(checkpoint, key, dataset, info)
    except ConfigError as error:
        if CONTENT not in config.allow_changes:
            raise ConfigError(f"{error}, or add allow_changes=[{CONTENT}] to go on all the same") from None
        return [f"the run goes on with other images than so far: {error}"]


def _other_moments(before: Config, config: Config) -> dict[str, tuple[Any, Any]]:
    """The settings of optimizers that keep other moments than the optimizers before: name -> (before, now)."""
    wrong: dict[str, tuple[Any, Any]] = {}
    for side in ("G", "D"):
        old, now = getattr(before.optim, side), getattr(config.optim, side)
        if (old.name, old.args) == (now.name, now.args):
            continue
        probe = nn.Linear(2, 3, bias=False)
        found = [moments_of(make_optimizer(settings, probe), probe.weight) for settings in (old, now)]
        if found[0] != found[1]:
            pairs = {name: (getattr(old, name), getattr(now, name)) for name in ("name", "args")}
            wrong |= {f"optim.{side}.{name}": pair for name, pair in pairs.items() if pair[0] != pair[1]}
    return wrong


def _other_shapes(before: Config, config: Config, facts: dict[str, Any], info: DataInfo) -> dict[str, tuple[Any, Any]]:
    """The settings with which the networks would not fit the weights of a checkpoint: name -> (before, now)."""
    shapes: list[object] = []
    for model, image_shape, num_classes in (
        (before.model, facts["image_shape"], facts["num_classes"]),
        (config.model, info.image_shape, info.num_classes if config.model.conditional else 0),
    ):
        try:
            networks = networks_on_meta(model, tuple(image_shape), num_classes)
        except Exception:  # a checkpoint may come from a stranger, with sizes that no network can have
            shapes.append(None)
            continue
        shapes.append([{name: value.shape for name, value in network.state_dict().items()} for network in networks])
    if shapes[0] == shapes[1]:
        return {}
    wrong: dict[str, tuple[Any, Any]] = {
        name: pair
        for name, pair in kept_only(find_changes(before, config)).items()
        if name.startswith(("model.", "data."))
    }
    now = (list(info.image_shape), info.num_classes if config.model.conditional else 0)
    for what, old, new in zip(("image shape", "classes"), (facts["image_shape"], facts["num_classes"]), now):
        if old != new:
            wrong[what] = (old, new)
    return wrong


def changed_environment(checkpoint: Path, now: dict[str, str]) -> str:
    """Compare the versions, the device, the precision and the compilation with those that wrote the checkpoint.

    Returns:
        The differences in words; "" if there are none. With differences, a resumed run is not bit-identical to a run
        without a stop.
    """
    before = {**now, **read_facts(checkpoint)["environment"]}
    return ", ".join(f"{key} was {before[key]} and is {now[key]}" for key in now if before[key] != now[key])
