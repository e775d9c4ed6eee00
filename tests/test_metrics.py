"""FID, KID and Inception Score against closed forms, and extractors."""

from __future__ import annotations

import math
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import linalg
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from gan_dist.data import DataInfo
from gan_dist.data.datasets import describe, load_dataset
from gan_dist.data.in_memory import ImageTensor
from gan_dist.errors import UserError
from gan_dist.metrics import Reference
from gan_dist.metrics.classifier import trained_classifier
from gan_dist.metrics.extractors import ClassifierExtractor, InceptionExtractor, inception_weights
from gan_dist.metrics.features import FeatureEvaluator, scores
from gan_dist.parallel.distributed import Distributed
from gan_dist.settings.schema import Data, Model
from gan_dist.wiring.data import source_of
from gan_dist.wiring.networks import make_generator

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dist() -> Distributed:
    return Distributed(cpu=True)


@pytest.fixture(scope="module")
def digits() -> ImageTensor:
    config = Data()
    dataset = load_dataset(source_of(config), describe(source_of(config)))
    assert isinstance(dataset, ImageTensor)
    return dataset


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("classifiers")


@pytest.fixture(scope="module")
def extractor(digits: ImageTensor, dist: Distributed, cache: Path) -> ClassifierExtractor:
    return ClassifierExtractor(trained_classifier(digits, 10, "digits", 0, cache, None, dist))


def test_fid_is_the_frechet_distance_of_two_gaussians() -> None:
    torch.manual_seed(0)
    real, fake = torch.randn(600, 5), 1.5 * torch.randn(400, 5) + 0.3
    a, b = np.cov(real.numpy().T.astype(np.float64)), np.cov(fake.numpy().T.astype(np.float64))
    distance = (real.double().mean(0) - fake.double().mean(0)).square().sum().item()
    expected = distance + np.trace(a + b - 2 * linalg.sqrtm(a @ b).real)
    assert scores(real, fake, torch.zeros(400, 2), 0)["fid"] == pytest.approx(expected, rel=1e-5)


def test_kid_is_the_unbiased_cubic_mmd() -> None:
    torch.manual_seed(0)
    real, fake = torch.randn(60, 5), torch.randn(60, 5) + 0.5  # fewer than 1,000: every subset is the whole

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a.double() @ b.double().T / 5 + 1) ** 3

    def off_diagonal(k: Tensor) -> Tensor:
        return (k.sum() - k.trace()) / (60 * 59)

    expected = off_diagonal(kernel(real, real)) + off_diagonal(kernel(fake, fake)) - 2 * kernel(real, fake).mean()
    assert scores(real, fake, torch.zeros(60, 2), 0)["kid"] == pytest.approx(expected.item(), rel=1e-4)


def test_inception_score_lies_between_one_and_the_number_of_classes() -> None:
    features = torch.randn(1000, 2)
    sure = 100 * torch.eye(10).repeat(100, 1)
    # 10 but for the finite splits: the entropy of 100 draws is short by (10 - 1) / (2 * 100) on average (Miller 1955).
    assert scores(features, features, sure, 0)["is"] == pytest.approx(10 * math.exp(-9 / 200), rel=0.02)
    assert scores(features, features, torch.randn(1, 10).expand(1000, 10), 0)["is"] == pytest.approx(1, abs=1e-4)


def test_precision_and_recall_of_clusters() -> None:
    """Generated images lie in one of two real clusters, and as many in the middle of nowhere."""
    torch.manual_seed(0)
    places = torch.eye(5)
    real = 100 * places[[0, 1]].repeat(50, 1) + torch.rand(100, 5)
    fake = torch.cat([real[::2] + 1e-3, 100 * places[[2]] + torch.rand(50, 5)])
    found = scores(real, fake, torch.zeros(100, 2), 0)
    assert (found["precision"], found["recall"]) == (0.5, 0.5)
    same = scores(real, real, torch.zeros(100, 2), 0)
    assert (same["precision"], same["recall"]) == (1, 1)


def test_precision_is_of_generated_images_and_recall_of_real_ones() -> None:
    """All generated images are good, but lie in one of two real clusters."""
    torch.manual_seed(0)
    real = 100 * torch.eye(5)[[0, 1]].repeat(50, 1) + torch.rand(100, 5)
    found = scores(real, real[::2].repeat(2, 1) + 1e-3 * torch.rand(100, 5), torch.zeros(100, 2), 0)
    assert (found["precision"], found["recall"]) == (1, 0.5)


def test_reference_is_spread_evenly_over_a_large_data_set(dist: Distributed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not its first images, which may all be of one class."""

    class Brightness:
        name, num_features, num_logits, weights, resizing = "brightness", 1, 2, "", "none"

        def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
            features = images.float().flatten(1)[:, :1]
            return features, -features.expand(-1, 2)

    monkeypatch.setattr("gan_dist.metrics.features.MAX_REAL", 5)
    dataset = ImageTensor(torch.arange(20, dtype=torch.uint8)[:, None, None, None], torch.zeros(20))
    reference = Reference(dataset, DataInfo((1, 1, 1), 0, 20), "", None)
    evaluator = FeatureEvaluator(Brightness(), reference, dist, num_images=4, batch_size=2, seed=0, extra={})
    assert evaluator.real.flatten().tolist() == [0, 4, 8, 12, 16]


def test_same_set_is_at_distance_zero(digits: ImageTensor, extractor: ClassifierExtractor) -> None:
    features, logits = extractor(digits.images)
    result = scores(features, features, logits, 0)
    assert result["fid"] == pytest.approx(0, abs=1e-3)
    assert features.dtype == torch.float32


def test_classifier_knows_its_data_and_is_trained_once(
    digits: ImageTensor, extractor: ClassifierExtractor, dist: Distributed, cache: Path
) -> None:
    _, logits = extractor(digits.images)
    assert (logits.argmax(1) == digits.labels).float().mean() > 0.99
    (file,) = cache.glob("classifier-*.safetensors")
    before = file.stat().st_mtime_ns
    again = trained_classifier(digits, 10, "digits", 0, cache, None, dist)
    assert file.stat().st_mtime_ns == before
    assert torch.equal(again.head.weight, extractor.classifier.head.weight)


@pytest.mark.slow
def test_batch_size_changes_nothing(digits: ImageTensor, extractor: ClassifierExtractor, dist: Distributed) -> None:
    G = make_generator(Model(), (1, 8, 8), 10).eval()
    results = []
    reference = Reference(digits, describe(source_of(Data())), "key", torch.full((10,), 0.1))
    for batch_size in (250, 77):
        evaluator = FeatureEvaluator(
            extractor, reference, dist, num_images=503, batch_size=batch_size, seed=0, extra={}
        )
        results.append(evaluator(G))
    assert set(results[0]) == {f"{name}_classifier" for name in ("fid", "kid", "is", "precision", "recall")}
    for name, value in results[0].items():
        assert results[1][name] == pytest.approx(value, rel=1e-4)
        assert math.isfinite(value)
    assert evaluator.protocol["num_generated"] == 503
    assert evaluator.protocol["num_real"] == 1797


def test_absent_inception_weights_get_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # no network for this test, wherever it runs
    with pytest.raises(UserError) as caught:
        inception_weights("", tmp_path)
    for text in (str(tmp_path), "weights-inception-2015-12-05-6726825d.pth", "metrics.extractor=classifier"):
        assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_inception_weights_in_the_cache_get_one_line(tmp_path: Path) -> None:
    path = tmp_path / "weights-inception-2015-12-05-6726825d.pth"
    path.write_bytes(b"half of a download")
    with pytest.raises(UserError, match=f"no usable weights at {path}.*damaged"):
        inception_weights("", tmp_path)


class _Malicious:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.witness),)


def test_pickle_in_place_of_inception_weights_is_refused(tmp_path: Path) -> None:
    path, witness = tmp_path / "weights.pth", tmp_path / "executed"
    with path.open("wb") as file:
        pickle.dump(_Malicious(witness), file)
    with pytest.raises(UserError, match="no usable weights"):
        InceptionExtractor(path, CPU)
    assert not witness.exists()


@pytest.mark.slow
def test_pickle_in_place_of_a_cached_classifier_is_never_loaded(
    digits: ImageTensor, extractor: ClassifierExtractor, dist: Distributed, cache: Path, tmp_path: Path
) -> None:
    """It is trained again, to the same weights."""
    (file,) = cache.glob("classifier-*.safetensors")
    witness = tmp_path / "executed"
    file.write_bytes(pickle.dumps(_Malicious(witness)))
    again = trained_classifier(digits, 10, "digits", 0, file.parent, None, dist)
    assert not witness.exists()
    torch.testing.assert_close(again.head.weight, extractor.classifier.head.weight)


@pytest.mark.slow
def test_inception_takes_every_number_of_channels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With random weights, saved and loaded: the standard ones can't be had everywhere, the path is the same."""
    torch.save({}, tmp_path / "empty.pth")
    with monkeypatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = InceptionExtractor(tmp_path / "empty.pth", CPU).network
    torch.save(network.state_dict(), tmp_path / "random.pth")
    extractor = InceptionExtractor(tmp_path / "random.pth", CPU)
    gray = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    features, logits = extractor(gray)
    assert (features.shape, logits.shape) == ((2, 2048), (2, 1008))
    torch.testing.assert_close(extractor(gray.expand(-1, 3, -1, -1))[0], features)
    torch.testing.assert_close(extractor(gray.expand(-1, 4, -1, -1))[0], features)
    torch.testing.assert_close(network(gray.expand(-1, 3, -1, -1))[0], features)
    assert extractor.weights == InceptionExtractor(tmp_path / "random.pth", CPU).weights
    torch.save({name: 2 * tensor for name, tensor in network.state_dict().items()}, tmp_path / "other.pth")
    assert extractor.weights != InceptionExtractor(tmp_path / "other.pth", CPU).weights
