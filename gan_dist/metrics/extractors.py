"""Feature extractors: uint8 images -> features and logits, in fp32, whatever the run's precision."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from gan_dist.config import Metrics
from gan_dist.data import DataInfo
from gan_dist.data.loader import Preprocess
from gan_dist.data.sources import Images
from gan_dist.distributed import Distributed
from gan_dist.errors import UserError
from gan_dist.metrics.classifier import Classifier, trained_classifier

_INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"


class Extractor(Protocol):
    """images uint8 (N, C, H, W) -> features (N, num_features) and logits (N, num_logits), float32.

    Attributes:
        name: the last part of the metrics' names.
    """

    name: str
    num_features: int
    num_logits: int

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]: ...


class ClassifierExtractor:
    """`gan_dist.metrics.classifier` on images as D sees them."""

    name = "classifier"
    num_features = Classifier.num_features

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier
        self.num_logits = classifier.head.out_features
        self.preprocess = Preprocess(seed=0, hflip=False)

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.classifier(self.preprocess(images, 0))


class InceptionExtractor:
    """The Inception network of 2015 that FID, KID and Inception Score are defined by, through torch-fidelity.

    It resizes to 299x299 as TensorFlow 1 did; gives pool features (N, 2048) and logits without bias (N, 1008).
    """

    name = "inception"
    num_features = 2048
    num_logits = 1008

    def __init__(self, weights: str, device: torch.device) -> None:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        path = Path(weights) if weights else Path(torch.hub.get_dir()) / "checkpoints" / _INCEPTION_FILE
        try:
            if weights or path.exists():
                torch.load(path, weights_only=True, map_location="cpu")  # torch-fidelity itself would load any pickle
            self.network = FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=weights or None
            )
        except Exception as error:
            raise UserError(
                f"metrics.extractor=inception: no usable weights at {path} ({type(error).__name__}: "
                f"{' '.join(str(error).split())[:100]}); copy {_INCEPTION_FILE} of torch-fidelity's release v0.2.0 "
                "there, or set metrics.inception_weights=FILE, metrics.extractor=classifier or metrics.every_kimg=0"
            ) from error
        self.network.to(device).eval().requires_grad_(False)

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        rgb = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images[:, :3]
        features, logits = self.network(rgb)
        return features, logits


def make_extractor(config: Metrics, info: DataInfo, dataset: Images, cache: Path, dist: Distributed) -> Extractor:
    """The configured extractor, ready on the device.

    Raises:
        UserError: Inception's weights are absent and can't be had.
    """
    if config.extractor == "inception":
        return InceptionExtractor(config.inception_weights, dist.device)
    return ClassifierExtractor(trained_classifier(dataset, info.num_classes, config.seed, cache, dist))
