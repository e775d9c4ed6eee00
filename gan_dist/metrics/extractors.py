"""Feature extractors: networks that compute features and logits of images, for FID and the other metrics.

Evaluators run them in IEEE fp32, never in TF32 or half precision, whatever the run's precision is. So a later
`gan-dist evaluate` gives the same values.
"""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gan_dist.data.preprocess import images_to_float
from gan_dist.errors import UserError
from gan_dist.files import open_regular
from gan_dist.metrics import Reference, weights_hash
from gan_dist.metrics.classifier import Classifier, trained_classifier
from gan_dist.parallel.distributed import Distributed
from gan_dist.parts import Table

_INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
_INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"

MOST_BYTES = 2**30  # largest size of a file of weights; that of Inception has 95 MB


class Extractor(Protocol):
    """A feature extractor, which maps images uint8 (N, C, H, W) to features and logits.

    It returns features (N, num_features) and logits (N, num_logits), both float32.

    Attributes:
        name: name of the extractor, which is added to the names of the metrics.
        num_features: number of features per image.
        num_logits: number of logits per image.
        weights: SHA-256 of its weights; "" if it has none.
        resizing: how it resizes the images, in words; "none" if it does not.
    """

    name: str
    num_features: int
    num_logits: int
    weights: str
    resizing: str

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]: ...


class ClassifierExtractor:
    """The classifier of `gan_dist.metrics.classifier`, which was trained on the data set's own labels."""

    name = "classifier"
    num_features = Classifier.num_features
    resizing = "none"

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier
        self.num_logits = classifier.head.out_features
        self.weights = weights_hash(classifier)

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.classifier(images_to_float(images))


class InceptionExtractor:
    """The Inception network of 2015 that published FID, KID and Inception Score use, from torch-fidelity.

    It resizes images to 299x299 as TensorFlow 1 did. The features (N, 2048) are the output of the last pooling layer,
    and the logits (N, 1008) are computed without bias. A grayscale image is used as all three channels.

    Args:
        weights: file of the weights.
        device: where to put the network.

    Raises:
        UserError: the file cannot be used.
    """

    name = "inception"
    num_features = 2048
    num_logits = 1008
    resizing = "299x299, bilinear, as TensorFlow 1"

    def __init__(self, weights: Path, device: torch.device) -> None:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        try:
            with open_regular(weights, MOST_BYTES, links=True) as file:
                path = f"/dev/fd/{file.fileno()}"  # torch-fidelity wants a path; this one is that of the open file
                # torch-fidelity would load any pickle, which can run code. This line fails if there are not only
                # weights in the file.
                torch.load(path, weights_only=True, map_location="cpu")
                self.network = FeatureExtractorInceptionV3(
                    "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=path
                )
        except Exception as error:
            raise _no_weights(weights, error) from error
        self.weights = weights_hash(self.network)
        self.network.to(device).eval().requires_grad_(False)

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        rgb = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images[:, :3]
        features, logits = self.network(rgb)
        return features, logits


def inception_path(weights: str, cache: Path) -> Path:
    """Return where `inception_weights` finds the weights, or puts them. The arguments are the same."""
    return Path(weights) if weights else cache / _INCEPTION


def inception_weights(weights: str, cache: Path) -> Path:
    """Return the path of Inception's weights, and download them if necessary.

    Args:
        weights: `metrics.inception_weights`, a file; "" for the standard weights of torch-fidelity.
        cache: directory for the standard weights.

    Raises:
        UserError: the standard weights are not in the cache and cannot be downloaded, or they are damaged.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    path = inception_path(weights, cache)
    if weights:
        return path
    try:
        if not path.exists():
            cache.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), _INCEPTION_SHA256, progress=False)
        with open_regular(path, MOST_BYTES, links=True) as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != _INCEPTION_SHA256:
                raise ValueError("damaged: its SHA-256 is wrong")
    except Exception as error:  # network, file and disk can cause errors of many types
        raise _no_weights(path, error) from error
    return path


def _no_weights(path: Path, error: Exception) -> UserError:
    return UserError(
        f"metrics.extractor=inception: no usable weights at {path} ({type(error).__name__}: {str(error)[:100]}); "
        f"copy {_INCEPTION} of torch-fidelity's release v0.2.0 there, or set metrics.inception_weights=FILE, "
        "metrics.extractor=classifier or metrics.every_kimg=0"
    )


def classifier_extractor(
    reference: Reference, seed: int, cache: Path, run_dir: Path | None, dist: Distributed, weights: str
) -> Extractor:
    """Return a classifier of the data set's labels as feature extractor.

    It is read from the run directory or the cache, or trained now. All processes call this function together.

    Args:
        reference: the data set.
        seed: seed of the training.
        cache: directory in which trained classifiers are kept for all runs.
        run_dir: the run directory, where the run keeps a copy; None if there is no run.
        dist: the processes.
        weights: not used.

    Raises:
        NoFigure: see `gan_dist.metrics.classifier.trained_classifier`.
    """
    images, num_classes = reference.images, reference.info.num_classes
    return ClassifierExtractor(
        trained_classifier(images, num_classes, reference.key, seed, cache, run_dir, dist, reference.workers)
    )


def inception_extractor(
    reference: Reference, seed: int, cache: Path, run_dir: Path | None, dist: Distributed, weights: str
) -> Extractor:
    """Return the standard Inception network as feature extractor. All processes call this function together.

    Args:
        reference, seed, run_dir: not used.
        cache, weights: see `inception_weights`.
        dist: the processes.

    Raises:
        UserError: there are no usable weights, or this node has others than the main process.
    """
    path = dist.from_main(lambda: inception_weights(weights, cache))
    extractor = InceptionExtractor(path, dist.device)
    if dist.from_main(lambda: extractor.weights) != extractor.weights:
        raise UserError(f"{path} on {socket.gethostname()}: other weights than in the main process; copy its file")
    return extractor


class UsersExtractor:
    """A feature extractor that a user has registered.

    Args:
        name: its registered name.
        call: maps images uint8 (N, C, H, W) to features and logits, as `Extractor`; it has the attributes
            `num_features` and `num_logits`, and may have `resizing`.
        code: which code it is; see `gan_dist.parts.Table.where`.
    """

    def __init__(self, name: str, call: Any, code: str) -> None:
        self.name, self.call = name, call
        self.num_features, self.num_logits = call.num_features, call.num_logits
        self.weights = f"{code} {weights_hash(call) if isinstance(call, nn.Module) else ''}".strip()
        self.resizing: str = getattr(call, "resizing", "none")

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = self.call(images)
        return features, logits


# The valid values of `metrics.extractor`, each with the function that makes the extractor. Those of this package take
# the same arguments; one that a user has registered is called as `make(device, *, arguments)`.
_OWN = {"classifier": classifier_extractor, "inception": inception_extractor}
EXTRACTORS = Table("extractor", _OWN)
