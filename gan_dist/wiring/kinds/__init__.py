"""Kinds of data: images, stacked images, and points in the plane. Each kind has one file.

To add a kind, add a file here and a line in `kind_of`.
"""

from __future__ import annotations

from gan_dist.data.points import POINTS
from gan_dist.settings.schema import Data
from gan_dist.wiring.kinds.images import ImagesKind
from gan_dist.wiring.kinds.kind import Kind
from gan_dist.wiring.kinds.points import PointsKind
from gan_dist.wiring.kinds.stacked import StackedKind


def kind_of(data: Data) -> Kind:
    """Return the kind of data set that the settings ask for."""
    if data.name in POINTS:
        return PointsKind()
    return StackedKind() if data.stacked else ImagesKind()
