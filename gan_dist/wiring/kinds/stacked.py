"""The kind of data "stacked images": as for images, but the evaluator counts the modes that G generates."""

from __future__ import annotations

from pathlib import Path

from gan_dist.data import DataInfo
from gan_dist.data.in_memory import ImageTensor
from gan_dist.errors import ConfigError
from gan_dist.metrics import Evaluator, Reference
from gan_dist.metrics.classifier import trained_classifier
from gan_dist.metrics.extractors import ClassifierExtractor, Extractor
from gan_dist.metrics.stacked import StackedEvaluator, first_channel
from gan_dist.parallel.distributed import Distributed
from gan_dist.settings.schema import Config
from gan_dist.wiring.data import cache_dir
from gan_dist.wiring.kinds.images import ImagesKind


class StackedKind(ImagesKind):
    """Data sets of stacked images. The methods are described in `gan_dist.wiring.kinds.kind.Kind`."""

    num_images = None

    def check(self, config: Config) -> None:
        if config.model.conditional:
            raise ConfigError(
                "data.stacked=true counts modes, which G must find without labels; set model.conditional=false"
            )

    def check_metrics(self, config: Config, info: DataInfo) -> None:
        pass

    def make_evaluator(
        self, config: Config, reference: Reference, run_dir: Path | None, dist: Distributed
    ) -> Evaluator:
        metrics = config.metrics
        return StackedEvaluator(
            self._extractor(config, reference, run_dir, dist),
            reference,
            dist,
            num_images=metrics.num_images,
            batch_size=metrics.batch_size,
            seed=metrics.seed,
        )

    def _extractor(self, config: Config, reference: Reference, run_dir: Path | None, dist: Distributed) -> Extractor:
        """Return the classifier of the grayscale images, whatever `metrics.extractor` is."""
        assert isinstance(reference.images, ImageTensor)
        num_classes = round(reference.info.num_classes ** (1 / 3))
        grayscale, seed = first_channel(reference.images, num_classes), config.metrics.seed
        key = f"{reference.key} first channel"
        return ClassifierExtractor(trained_classifier(grayscale, num_classes, key, seed, cache_dir(), run_dir, dist))
