"""The kind of data "stacked images": as for images, but the evaluator counts the modes that G generates."""

from __future__ import annotations

from torch import Tensor

from gan_dist.data import DataInfo
from gan_dist.data.in_memory import Images, ImageTensor
from gan_dist.errors import ConfigError
from gan_dist.metrics import Evaluator
from gan_dist.metrics.classifier import trained_classifier
from gan_dist.metrics.extractors import ClassifierExtractor
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
        self, config: Config, info: DataInfo, dataset: Images, class_probs: Tensor | None, dist: Distributed
    ) -> Evaluator:
        assert isinstance(dataset, ImageTensor)
        metrics, num_classes = config.metrics, round(info.num_classes ** (1 / 3))
        grayscale = first_channel(dataset, num_classes)
        return StackedEvaluator(
            ClassifierExtractor(trained_classifier(grayscale, num_classes, metrics.seed, cache_dir(), dist)),
            dataset,
            dist,
            num_images=metrics.num_images,
            batch_size=metrics.batch_size,
            seed=metrics.seed,
        )

    def prepare_extractor(self, config: Config, info: DataInfo, dataset: Images, dist: Distributed) -> str:
        return ""
