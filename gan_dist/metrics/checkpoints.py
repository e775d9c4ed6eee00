"""Measuring the generators of checkpoints."""

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
    """Yield the figures of each checkpoint, with the protocol by which they were measured.

    Args:
        load: checkpoint -> its generator in eval mode, on the device, and the kimg that it has seen.
        known: results of before; a checkpoint that was measured by the same protocol is left out.
    """
    measured = [result.get("checkpoint") for result in known if result.get("protocol") == evaluator.protocol]
    for path in checkpoints:
        if path.name not in measured:
            G, kimg = load(path)
            yield {"checkpoint": path.name, "kimg": kimg, **evaluator(G), "protocol": evaluator.protocol}
