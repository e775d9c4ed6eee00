"""What a kind of data has to know, so that the rest of the package need not ask which kind it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from torch import Tensor, nn

from gan_dist.data import DataInfo
from gan_dist.data.in_memory import Images
from gan_dist.engine.draws import ToFloat
from gan_dist.metrics import Evaluator
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
        self, config: Config, info: DataInfo, dataset: Images, class_probs: Tensor | None, dist: Distributed
    ) -> Evaluator:
        """Make the evaluator that measures a generator of this kind.

        All processes call this function together.

        Args:
            config: the settings.
            info: what `gan_dist.data.datasets.describe` returned.
            dataset: the data set.
            class_probs: probability of each label for G, (num_classes,); None if G takes no label.
            dist: the processes.
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

    def prepare_extractor(self, config: Config, info: DataInfo, dataset: Images, dist: Distributed) -> str:
        """Download or train the feature extractor, unless it is in the cache.

        Returns:
            Its name, or "" if nothing is prepared: points need no extractor, and stacked images train theirs when their
            evaluator is made.
        """
