"""Judging a generator: feature extractors, reference features, and FID, KID and Inception Score on them.

A metric's name says by what features it was measured: `fid_classifier` can't be mistaken for `fid_inception`.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import nn


class Evaluator(Protocol):
    """What measures generators in eval mode with fp32 weights, in all processes together."""

    @property
    def protocol(self) -> dict[str, Any]:
        """What a figure must be quoted with."""

    def __call__(self, G: nn.Module) -> dict[str, float]:
        """The figures by their names."""
