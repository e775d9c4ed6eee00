"""Evaluate a generator: feature extractors, and FID, KID, Inception Score, precision and recall.

The name of a metric ends with the name of the feature extractor, for example `fid_classifier` or `fid_inception`,
because values from different extractors cannot be compared.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import nn


class Evaluator(Protocol):
    """An object that measures generators. All processes call it together."""

    @property
    def protocol(self) -> dict[str, Any]:
        """The facts that the metrics depend on, such as the number of images. Compare only values of one protocol."""

    def __call__(self, G: nn.Module) -> dict[str, float]:
        """Measure a generator in eval mode; returns the value of each metric by its name."""
