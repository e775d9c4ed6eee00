"""Series of figures: figures of different protocols are never compared, and never continue each other."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from gan_dist.checkpoint.find import read_facts
from gan_dist.metrics import Evaluator
from gan_dist.parallel.distributed import Distributed

log = logging.getLogger(__name__)


def figures_of(evaluator: Evaluator | None, checkpoint: Path | None, dist: Distributed) -> dict[str, Any]:
    """Return the protocol of a run's figures and the number of their series, which each checkpoint records.

    A resumed run whose protocol is another one than before starts a new series, and says so.

    Args:
        evaluator: measures the run; None if it is not measured, and then nothing changes.
        checkpoint: the checkpoint to resume from; None for a new run.
        dist: the processes.

    Returns:
        `protocol`, {} if nothing was ever measured, and `series`, 1 for the first one.
    """
    new: dict[str, Any] = {"protocol": {}, "series": 1, "metrics": {}}
    before = read_facts(checkpoint) if checkpoint else new
    if evaluator is None:
        return {name: before[name] for name in ("protocol", "series")}
    protocol, series = evaluator.protocol, before["series"]
    if before["metrics"] and before["protocol"] != protocol:
        series += 1
        if dist.is_main:
            log.warning(
                "figures are measured in another way than before (%s): they are named ..._series%d from now on, and "
                "are not compared with earlier ones",
                difference(before["protocol"], protocol),
                series,
            )
    return {"protocol": protocol, "series": series}


def difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Return in words what differs between two protocols."""
    if not before:
        return "the earlier ones have no protocol"
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return ", ".join(f"{name}: {before.get(name, 'not recorded')} -> {now.get(name, 'not recorded')}" for name in names)
