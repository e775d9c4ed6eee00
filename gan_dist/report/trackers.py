"""The table of trackers, and making those of a run."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gan_dist.parts import Table
from gan_dist.report.plot import PlotTracker
from gan_dist.report.tracking import LocalTracker, Tracker
from gan_dist.report.wandb_tracker import WandbTracker


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker knows of the run.

    Attributes:
        run_dir: the run directory.
        nimg: images seen so far. The local tracker deletes the lines that it has recorded beyond them.
        config: all settings, as nested mappings.
        wandb_mode, project, entity: see `gan_dist.settings.schema.Tracking`.
    """

    run_dir: Path
    nimg: int
    config: dict[str, Any]
    wandb_mode: str
    project: str
    entity: str


def _local(run: TrackedRun) -> Tracker:
    return LocalTracker(run.run_dir, run.nimg)


def _plot(run: TrackedRun) -> Tracker:
    return PlotTracker(run.run_dir)


def _wandb(run: TrackedRun) -> Tracker | None:
    if run.wandb_mode == "disabled" or os.environ.get("WANDB_MODE") == "disabled":
        return None
    name = run.run_dir.resolve().name
    return WandbTracker(run.run_dir, run.wandb_mode, run.project, run.entity, name, run.config)


# Name -> function that makes the tracker of a run, or returns None if the run is not to have it. The local tracker is
# first, because it removes the lines of `metrics.jsonl` that the plot must not show.
_OWN: dict[str, Callable[[TrackedRun], Tracker | None]] = {"local": _local, "plot": _plot, "wandb": _wandb}

# The parts of this package, which every run has, and those of users, which are the valid keys of `tracking.extra`. The
# latter are called as `make(run, *, arguments)`.
TRACKERS = Table("tracker", _OWN)


def make_trackers(run: TrackedRun, extra: Mapping[str, Mapping[str, Any]]) -> list[Tracker]:
    """Start all trackers of a run.

    Args:
        run: the run.
        extra: users' trackers by name, each with its arguments.
    """
    made = [make(run) for make in _OWN.values()] + [TRACKERS[name](run, **args) for name, args in extra.items()]
    return [tracker for tracker in made if tracker is not None]
