"""Kinds of data: images, points of the plane, stacked images. Each has one file, which knows all that is its own.

A new kind is a file here and a line in `kind_of`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from torch import Tensor, nn

from gan_dist.data import DataInfo
from gan_dist.data.in_memory import Images
from gan_dist.data.points import POINTS
from gan_dist.engine.draws import ToFloat
from gan_dist.metrics import Evaluator
from gan_dist.parallel.distributed import Distributed
from gan_dist.settings.schema import Config, Data

Picture = Callable[[nn.Module], np.ndarray]  # a generator in eval mode -> a picture uint8 (H, W, C) of its samples


class Kind(Protocol):
    """What a run does in another way for this kind of data.

    Attributes:
        num_images: how many images `gan-dist evaluate` generates if it is not told; None: as many as the run itself.
    """

    num_images: int | None

    @property
    def to_float(self) -> ToFloat:
        """The function that turns items as they are stored (N, C, H, W) into what D takes."""

    def check(self, config: Config) -> None:
        """Raises ConfigError for settings that this kind can't have."""

    def check_metrics(self, config: Config, info: DataInfo) -> None:
        """Raises ConfigError for metrics that this kind can't have."""

    def make_evaluator(
        self, config: Config, info: DataInfo, dataset: Images, class_probs: Tensor | None, dist: Distributed
    ) -> Evaluator:
        """What measures a generator of this kind."""

    def make_picture(self, config: Config, class_probs: Tensor | None, dist: Distributed) -> Picture:
        """What draws a generator's samples; all processes call it together."""

    def real_picture(self, config: Config, info: DataInfo, dataset: Images) -> np.ndarray:
        """A picture of the data, uint8 (H, W, C)."""

    def describe(self, config: Config, info: DataInfo, num_readable: int) -> str:
        """What was found, in words."""

    def fetch_extractor(self, config: Config, info: DataInfo, dataset: Images, dist: Distributed) -> str:
        """Have the feature extractor in the cache; returns its name, or "" if this kind is measured without one."""


def kind_of(data: Data) -> Kind:
    """The kind of a data set."""
    from gan_dist.wiring.kinds import images, points, stacked  # they import this file

    if data.name in POINTS:
        return points.PointsKind()
    return stacked.StackedKind() if data.stacked else images.ImagesKind()
