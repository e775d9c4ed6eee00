"""What a kind of data has to know, so that the rest of the package need not ask which kind it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor, nn

from gan_dist.data import DataInfo
from gan_dist.data.in_memory import Images
from gan_dist.engine.draws import ToFloat
from gan_dist.metrics import Evaluator, Reference
from gan_dist.parallel.distributed import Distributed
from gan_dist.settings.schema import Config

# A function from a generator in eval mode to a picture of its samples, uint8 (H, W, C).
Picture = Callable[[nn.Module], np.ndarray]


class Kind(Protocol):
    """The parts of a run that depend on the kind of its data.

    Attributes:
        num_images: number of images that `gan-dist evaluate` generates by default; None for `metrics.num_images`.
    """

    num_images: int | None

    @property
    def to_float(self) -> ToFloat:
        """The function that converts items as they are stored (N, C, H, W) to floats for D."""

    def check(self, config: Config) -> None:
        """Raise ConfigError if the settings do not fit this kind."""

    def check_metrics(self, config: Config, info: DataInfo) -> None:
        """Raise ConfigError if the section `metrics` does not fit this kind."""

    def make_evaluator(
        self, config: Config, reference: Reference, run_dir: Path | None, dist: Distributed
    ) -> Evaluator:
        """Make the evaluator that measures a generator of this kind.

        All processes call this function together.

        Args:
            config: the settings.
            reference: the data set.
            run_dir: the run directory, where a run keeps its own classifier; None if there is no run.
            dist: the processes.

        Raises:
            NoFigure: there can be no meaningful figure.
        """

    def make_picture(self, config: Config, info: DataInfo, class_probs: Tensor | None, dist: Distributed) -> Picture:
        """Make the function that draws samples of a generator. All processes call that function together."""

    def real_picture(self, config: Config, info: DataInfo, dataset: Images) -> np.ndarray:
        """Make a picture of the real data, uint8 (H, W, C)."""

    def describe(self, config: Config, info: DataInfo, num_readable: int) -> str:
        """Describe the data set in words, for `gan-dist prefetch`.

        Args:
            config: the settings.
            info: what `gan_dist.data.datasets.describe` returned.
            num_readable: number of images that can be read.
        """

    def prepare_extractor(self, config: Config, reference: Reference, dist: Distributed) -> str:
        """Download or train the feature extractor, unless it is in the cache.

        Returns:
            Its name, or "" for points, which need no extractor.

        Raises:
            NoFigure: there can be no meaningful figure.
        """
