"""The kind of data "images": pictures are grids, and FID and the other metrics use a feature extractor."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gan_dist.data import DataInfo
from gan_dist.data.in_memory import Images
from gan_dist.data.preprocess import images_to_float
from gan_dist.errors import ConfigError
from gan_dist.metrics import Evaluator, Reference
from gan_dist.metrics.extractors import EXTRACTORS, Extractor, UsersExtractor
from gan_dist.metrics.features import METRICS, FeatureEvaluator
from gan_dist.parallel.distributed import Distributed
from gan_dist.report.captions import with_captions
from gan_dist.report.pictures import columns_of, grid_picture
from gan_dist.rng import Purpose, permuted
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
        if config.metrics.extractor == "classifier" and info.num_classes < 2:
            lacks = "has one class, and it needs at least two" if info.num_classes else "has no labels to train one on"
            raise ConfigError(
                f"metrics.extractor=classifier, but data.name={config.data.name} {lacks}; "
                "set metrics.extractor=inception, or metrics.every_kimg=0 for no metrics"
            )
        cache_dir()  # an error is raised now and not after the data are loaded

    def make_evaluator(
        self, config: Config, reference: Reference, run_dir: Path | None, dist: Distributed
    ) -> Evaluator:
        metrics = config.metrics
        return FeatureEvaluator(
            self._extractor(config, reference, run_dir, dist),
            reference,
            dist,
            num_images=metrics.num_images,
            batch_size=metrics.batch_size,
            seed=metrics.seed,
            extra={name: partial(METRICS[name], **args) for name, args in metrics.extra.items()},
        )

    def make_picture(self, config: Config, info: DataInfo, class_probs: Tensor | None, dist: Distributed) -> Picture:
        seed, rows = config.train.seed, config.sample.rows
        names = info.class_names if config.model.conditional else ()
        return lambda G: _captioned(sample_grid(G, seed, rows, dist), names, rows)

    def real_picture(self, config: Config, info: DataInfo, dataset: Images) -> np.ndarray:
        rows = config.sample.rows
        return _captioned(real_grid(dataset, info.num_classes, rows, config.train.seed), info.class_names, rows)

    def describe(self, config: Config, info: DataInfo, num_readable: int) -> str:
        shape = "x".join(map(str, info.image_shape))
        where = "inside scikit-learn" if config.data.name == "digits" else f"in {Path(config.data.root).resolve()}"
        return f"{num_readable} of {info.num_images} images can be read, {shape}, {where}"

    def prepare_extractor(self, config: Config, reference: Reference, dist: Distributed) -> str:
        return self._extractor(config, reference, None, dist).name

    def _extractor(self, config: Config, reference: Reference, run_dir: Path | None, dist: Distributed) -> Extractor:
        metrics = config.metrics
        make = EXTRACTORS[metrics.extractor]
        if metrics.extractor not in EXTRACTORS.own:
            call = make(dist.device, **metrics.args)
            return UsersExtractor(metrics.extractor, call, EXTRACTORS.where(metrics.extractor))
        return make(reference, metrics.seed, cache_dir(), run_dir, dist, metrics.inception_weights)


def _captioned(grid: np.ndarray, class_names: Sequence[str], rows: int) -> np.ndarray:
    """Write the name of its class above each column of a grid, if the classes have names."""
    columns = columns_of(len(class_names), rows)
    return with_captions(grid, [class_names[i % len(class_names)] for i in range(columns)]) if class_names else grid


def real_grid(dataset: Images, num_classes: int, rows: int, seed: int) -> np.ndarray:
    """Make a grid of real images, which are drawn from the data set without repetition.

    Args:
        dataset: the data set.
        num_classes: number of classes; each column shows one class. 0 if there are no classes.
        rows: number of rows. Places for which there are too few readable images stay white.
        seed: determines which images are drawn.

    Returns:
        The picture, uint8 (height, width, C).
    """
    columns = columns_of(num_classes, rows)
    if num_classes:
        labels, shown = dataset.labels.cpu(), min(num_classes, columns)
        of_class = [(labels == label).nonzero().flatten().tolist() for label in range(shown)]
        drawn = [_draw(dataset, images, rows * columns // shown, seed) for images in of_class]
        # Column c shows class c modulo `shown`; of the columns of a class, each shows the next images.
        places = [(c % shown, r * (columns // shown) + c // shown) for r in range(rows) for c in range(columns)]
        wanted = [drawn[label][i] if i < len(drawn[label]) else None for label, i in places]
    else:
        images = _draw(dataset, range(len(dataset)), rows * columns, seed)
        wanted = [images[i] if i < len(images) else None for i in range(rows * columns)]
    none = dataset.readable([])[1]
    blank = none.new_full(none.shape[1:], 255)
    return grid_picture(torch.stack([blank if image is None else image for image in wanted]), columns)


def _draw(dataset: Images, indices: Sequence[int], count: int, seed: int) -> Tensor:
    """Return images uint8 (M, C, H, W) with some of these numbers; M is `count`, or less if too few can be read."""
    found, n = [dataset.readable([])[1]], len(indices)
    for first in range(0, n, count):
        places = torch.arange(first, min(first + count, n))
        drawn = permuted(seed, Purpose.REAL_PICTURE, 0, places, n).tolist()
        found.append(dataset.readable([indices[i] for i in drawn])[1])
        if sum(map(len, found)) >= count:
            break
    return torch.cat(found)[:count]
