"""Measure the generators of checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from gan_dist.metrics import Evaluator


def evaluate_checkpoints(
    checkpoints: Sequence[Path],
    evaluator: Evaluator,
    load: Callable[[Path], tuple[nn.Module, float]],
    known: Sequence[dict[str, Any]] = (),
) -> Iterator[dict[str, Any]]:
    """Measure checkpoints, and yield a result for each. All processes call this function together.

    Args:
        checkpoints: directories of the checkpoints.
        evaluator: measures a generator.
        load: takes a checkpoint's directory; returns its generator, in eval mode and on the device, and the number of
            kimg after which the checkpoint was written.
        known: earlier results. A checkpoint with a result of the same protocol among them is skipped.

    Yields:
        A dict with `checkpoint` (name of the directory), `kimg`, the value of each metric, and `protocol`.
    """
    measured = [result.get("checkpoint") for result in known if result.get("protocol") == evaluator.protocol]
    for path in checkpoints:
        if path.name not in measured:
            G, kimg = load(path)
            yield {"checkpoint": path.name, "kimg": kimg, **evaluator(G), "protocol": evaluator.protocol}
