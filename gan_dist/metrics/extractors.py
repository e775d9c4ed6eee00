"""Feature extractors: uint8 images -> features and logits, in fp32.

Evaluators run them in IEEE fp32, never in TF32 or half precision, whatever the run's precision is, so that a later
`gan-dist evaluate` gives the same figures.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from gan_dist.data.in_memory import Images
from gan_dist.data.preprocess import images_to_float
from gan_dist.errors import UserError
from gan_dist.metrics.classifier import Classifier, trained_classifier
from gan_dist.parallel.distributed import Distributed

_INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
_INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


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

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.classifier(images_to_float(images))


class InceptionExtractor:
    """The Inception network of 2015 that FID, KID and Inception Score are defined by, through torch-fidelity.

    It resizes to 299x299 as TensorFlow 1 did; gives pool features (N, 2048) and logits without bias (N, 1008).
    """

    name = "inception"
    num_features = 2048
    num_logits = 1008

    def __init__(self, weights: Path, device: torch.device) -> None:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        try:
            torch.load(weights, weights_only=True, map_location="cpu")  # torch-fidelity itself would load any pickle
            self.network = FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights)
            )
        except Exception as error:
            raise _no_weights(weights, error) from error
        self.network.to(device).eval().requires_grad_(False)

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        rgb = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images[:, :3]
        features, logits = self.network(rgb)
        return features, logits


def inception_weights(weights: str, cache: Path) -> Path:
    """The file of Inception's weights: the configured one, or the standard one, in the cache or downloaded to it.

    Raises:
        UserError: it is not there and can't be had, or is not what it should be.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    if weights:
        return Path(weights)
    path = cache / _INCEPTION
    try:
        if not path.exists():
            cache.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), _INCEPTION_SHA256, progress=False)
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != _INCEPTION_SHA256:
                raise ValueError("damaged: its SHA-256 is another")
    except Exception as error:  # whatever the network, the file or the disk did
        raise _no_weights(path, error) from error
    return path


def _no_weights(path: Path, error: Exception) -> UserError:
    return UserError(
        f"metrics.extractor=inception: no usable weights at {path} ({type(error).__name__}: {str(error)[:100]}); "
        f"copy {_INCEPTION} of torch-fidelity's release v0.2.0 there, or set metrics.inception_weights=FILE, "
        "metrics.extractor=classifier or metrics.every_kimg=0"
    )


def classifier_extractor(
    dataset: Images, num_classes: int, seed: int, cache: Path, dist: Distributed, weights: str
) -> Extractor:
    """The classifier of this data set's own labels, from the cache or trained now. It has no use for `weights`."""
    return ClassifierExtractor(trained_classifier(dataset, num_classes, seed, cache, dist))


def inception_extractor(
    dataset: Images, num_classes: int, seed: int, cache: Path, dist: Distributed, weights: str
) -> Extractor:
    """The standard Inception network, with weights from this file, or if it is "" from the cache or a download.

    Raises:
        UserError: the weights are absent and can't be had.
    """
    return InceptionExtractor(dist.from_main(lambda: inception_weights(weights, cache)), dist.device)


# By the value of `metrics.extractor`. All take (dataset, num_classes, seed, cache directory, dist, file of weights).
EXTRACTORS = {"classifier": classifier_extractor, "inception": inception_extractor}
