"""The kind of data "images": pictures are grids, and FID and the other metrics use a feature extractor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gan_dist.data import DataInfo
from gan_dist.data.in_memory import Images
from gan_dist.data.preprocess import images_to_float
from gan_dist.errors import ConfigError
from gan_dist.metrics import Evaluator
from gan_dist.metrics.extractors import EXTRACTORS, Extractor
from gan_dist.metrics.features import FeatureEvaluator
from gan_dist.parallel.distributed import Distributed
from gan_dist.report.pictures import columns_of, grid_picture
from gan_dist.sampling import sample_grid
from gan_dist.settings.schema import Config
from gan_dist.wiring.data import cache_dir
from gan_dist.wiring.kinds.kind import Picture


class ImagesKind:
    """Data sets of images. The methods are described in `gan_dist.wiring.kinds.kind.Kind`."""

    to_float = staticmethod(images_to_float)
    num_images: int | None = 50_000

    def check(self, config: Config) -> None:
        pass

    def check_metrics(self, config: Config, info: DataInfo) -> None:
        for what, count in (
            (f"metrics.num_images={config.metrics.num_images}", config.metrics.num_images),
            (f"data.name={config.data.name} with {info.num_images} image", info.num_images),
        ):
            if count < 2:
                raise ConfigError(f"{what}: FID compares at least 2 images; use more, or set metrics.every_kimg=0")
        if config.metrics.extractor == "classifier" and not info.num_classes:
            raise ConfigError(
                f"metrics.extractor=classifier, but data.name={config.data.name} has no labels to train one on; "
                "set metrics.extractor=inception, or metrics.every_kimg=0 for no metrics"
            )
        cache_dir()  # an error is raised now and not after the data are loaded

    def make_evaluator(
        self, config: Config, info: DataInfo, dataset: Images, class_probs: Tensor | None, dist: Distributed
    ) -> Evaluator:
        metrics = config.metrics
        return FeatureEvaluator(
            self._extractor(config, info, dataset, dist),
            dataset,
            dist,
            class_probs,
            num_images=metrics.num_images,
            batch_size=metrics.batch_size,
            seed=metrics.seed,
        )

    def make_picture(self, config: Config, class_probs: Tensor | None, dist: Distributed) -> Picture:
        return lambda G: sample_grid(G, config.train.seed, config.sample.rows, dist)

    def real_picture(self, config: Config, info: DataInfo, dataset: Images) -> np.ndarray:
        return real_grid(dataset, info.num_classes, config.sample.rows)

    def describe(self, config: Config, info: DataInfo, num_readable: int) -> str:
        shape = "x".join(map(str, info.image_shape))
        where = "inside scikit-learn" if config.data.name == "digits" else f"in {Path(config.data.root).resolve()}"
        return f"{num_readable} of {info.num_images} images can be read, {shape}, {where}"

    def prepare_extractor(self, config: Config, info: DataInfo, dataset: Images, dist: Distributed) -> str:
        return self._extractor(config, info, dataset, dist).name

    def _extractor(self, config: Config, info: DataInfo, dataset: Images, dist: Distributed) -> Extractor:
        metrics = config.metrics
        make = EXTRACTORS[metrics.extractor]
        return make(dataset, info.num_classes, metrics.seed, cache_dir(), dist, metrics.inception_weights)


def real_grid(dataset: Images, num_classes: int, rows: int) -> np.ndarray:
    """Make a grid of the first real images.

    Args:
        dataset: the data set.
        num_classes: number of classes; each column shows one class. 0 if there are no classes.
        rows: number of rows. Places for which there are too few images stay white.

    Returns:
        The picture, uint8 (height, width, C).
    """
    columns = columns_of(num_classes, rows)
    if num_classes:
        of_class = [(dataset.labels == label).nonzero().flatten().tolist() for label in range(columns)]
        wanted = [of_class[c][r] if r < len(of_class[c]) else None for r in range(rows) for c in range(columns)]
    else:
        wanted = [i if i < len(dataset) else None for i in range(rows * columns)]
    blank = torch.full_like(dataset[0][0], 255)
    return grid_picture(torch.stack([blank if i is None else dataset[i][0] for i in wanted]), columns)
