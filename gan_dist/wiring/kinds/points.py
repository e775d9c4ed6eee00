"""The kind of data "points in the plane": pictures are scatter plots, and the evaluator counts the recovered modes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from gan_dist.data import DataInfo
from gan_dist.data.in_memory import Images
from gan_dist.data.points import modes
from gan_dist.data.preprocess import points_to_float
from gan_dist.errors import ConfigError
from gan_dist.metrics import Evaluator, Reference
from gan_dist.metrics.points import PointsEvaluator, sample_points
from gan_dist.parallel.distributed import Distributed
from gan_dist.report.scatter import scatter_picture
from gan_dist.settings.schema import Config
from gan_dist.wiring.kinds.kind import Picture

SHOWN = 2500  # number of points in a picture


class PointsKind:
    """Data sets of points. The methods are described in `gan_dist.wiring.kinds.kind.Kind`."""

    to_float = staticmethod(points_to_float)
    num_images: int | None = None

    def check(self, config: Config) -> None:
        name, model = config.data.name, config.model
        if config.data.image_size or config.data.channels:
            raise ConfigError(f"data.name={name} are points: leave data.image_size and data.channels at their defaults")
        if model.name != "mlp" or model.g_args.get("tanh", True):
            raise ConfigError(
                f"data.name={name} are points, which lie outside [-1, 1]: set model.name=mlp and "
                "model.g_args={tanh: false}"
            )
        if config.train.augment:
            raise ConfigError(f"train.augment is for images, and data.name={name} are points; set it to []")

    def check_metrics(self, config: Config, info: DataInfo) -> None:
        pass

    def make_evaluator(
        self, config: Config, reference: Reference, run_dir: Path | None, dist: Distributed
    ) -> Evaluator:
        name, probs, metrics = config.data.name, reference.class_probs, config.metrics
        return PointsEvaluator(name, dist, probs, num_images=metrics.num_images, seed=metrics.seed)

    def make_picture(self, config: Config, info: DataInfo, class_probs: Tensor | None, dist: Distributed) -> Picture:
        centres, seed = modes(config.data.name), config.train.seed
        return lambda G: scatter_picture(sample_points(G, SHOWN, seed, class_probs, dist), centres)

    def real_picture(self, config: Config, info: DataInfo, dataset: Images) -> np.ndarray:
        points, _ = dataset.__getitems__(list(range(SHOWN)))
        return scatter_picture(points.flatten(1).cpu(), modes(config.data.name))

    def describe(self, config: Config, info: DataInfo, num_readable: int) -> str:
        return f"{info.num_images} points, which the program computes"

    def prepare_extractor(self, config: Config, reference: Reference, dist: Distributed) -> str:
        return ""
