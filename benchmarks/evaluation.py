"""Metrics: the time of an evaluation, compared with the extractor's forward passes and with torch-fidelity.

    python -m benchmarks evaluation [--extractor inception|classifier] [--images 5000] [--rounds 1] [--json FILE]
    python -m benchmarks evaluation --beside-torch-fidelity [--images 5000] [--rounds 3] [--json FILE]

The first command compares two times: that of the extractor's bare forward passes on images in memory, and that of a
whole evaluation of a generator with the same number of real images (FID, KID, Inception Score, precision and recall).
Inception has random weights unless metrics.inception_weights names a file; this does not change the time. The second
command gives both libraries the same two sets of images and the features of the classifier.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import arena
from gan_dist.data import DataInfo
from gan_dist.data.datasets import describe, load_dataset
from gan_dist.data.in_memory import ImageTensor, data_key
from gan_dist.metrics import Reference
from gan_dist.metrics.extractors import EXTRACTORS, Extractor
from gan_dist.metrics.features import FeatureEvaluator, scores
from gan_dist.parallel.distributed import Distributed
from gan_dist.settings.config import load_config
from gan_dist.settings.schema import Config
from gan_dist.wiring.data import cache_dir, source_of
from gan_dist.wiring.kinds import kind_of
from gan_dist.wiring.networks import make_state


def timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    arena.wait_for_gpu()
    return time.perf_counter() - start


def random_inception(folder: str) -> str:
    """Write a file with random weights of Inception; return its path."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Random(FeatureExtractorInceptionV3):
        def load_state_dict(self, *_: Any) -> None:  # type: ignore[override]
            """Keep the random weights."""

    empty, path = Path(folder) / "empty.pth", Path(folder) / "inception.pth"
    torch.save({}, empty)
    network = Random("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(empty))
    torch.save(network.state_dict(), path)
    return str(path)


def extractor_of(config: Config, info: DataInfo, dataset: ImageTensor, dist: Distributed) -> Extractor:
    """The configured feature extractor."""
    metrics = config.metrics
    make = EXTRACTORS[metrics.extractor]
    return make(reference_of(info, dataset), metrics.seed, cache_dir(), None, dist, metrics.inception_weights)


def reference_of(info: DataInfo, dataset: ImageTensor) -> Reference:
    """The data set as what generators without labels are measured against."""
    return Reference(dataset, info, data_key(dataset, info.num_classes), None)


def overhead(config: Config, info: DataInfo, dataset: ImageTensor, rounds: int) -> dict[str, list[float]]:
    """Seconds of the extractor's bare forward passes and of whole evaluations, measured in turn."""
    dist = Distributed("fp32")
    G = make_state(config, info, dist).G_ema
    extractor = extractor_of(config, info, dataset, dist)
    n = config.metrics.num_images
    reference = ImageTensor(dataset.images[:n], dataset.labels[:n])
    evaluator = kind_of(config.data).make_evaluator(config, reference_of(info, reference), None, dist)
    batch = dataset.__getitems__(list(range(config.metrics.batch_size)))[0].to(dist.device)

    @torch.no_grad()
    def bare() -> None:
        for _ in range(n // config.metrics.batch_size):
            extractor(batch)

    extractor(batch)
    found: dict[str, list[float]] = {"bare": [], "whole": []}
    for _ in range(rounds):
        found["bare"].append(timed(bare))
        found["whole"].append(timed(lambda: evaluator(G)))
    return found


def fidelity(extractor: Extractor, real: Tensor, fake: Tensor) -> dict[str, float]:
    """torch-fidelity's figures for two sets of images, with our extractor."""
    import torch_fidelity
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    class Features(FeatureExtractorBase):
        def __init__(self, name: str, features_list: list[str], **_: Any) -> None:
            super().__init__(name, features_list)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return ("features", "logits")

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "logits" if metric == "isc" else "features"

        @staticmethod
        def can_be_compiled() -> bool:
            return False

        @staticmethod
        def get_dummy_input_for_compile() -> Tensor:
            raise NotImplementedError

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            made = dict(zip(self.get_provided_features_list(), extractor(x)))
            return tuple(made[name] for name in self.features_list)

    class Set(torch.utils.data.Dataset):
        def __init__(self, images: Tensor) -> None:
            self.images = images

        def __len__(self) -> int:
            return len(self.images)

        def __getitem__(self, index: int) -> Tensor:
            return self.images[index]

    with suppress(ValueError):  # registered in the round before
        torch_fidelity.register_feature_extractor("gan-dist", Features)
    figures = torch_fidelity.calculate_metrics(
        input1=Set(fake), input2=Set(real), feature_extractor="gan-dist", batch_size=250,
        isc=True, fid=True, kid=True, prc=True,
        kid_subset_size=min(1000, len(real)), cuda=torch.cuda.is_available(), verbose=False, cache=False,
        save_cpu_ram=True,
    )  # fmt: skip
    return {
        "fid": figures["frechet_inception_distance"],
        "kid": figures["kernel_inception_distance_mean"],
        "is": figures["inception_score_mean"],
        "precision": figures["precision"],
        "recall": figures["recall"],
    }


def beside(
    config: Config, info: DataInfo, dataset: ImageTensor, rounds: int
) -> tuple[dict[str, list[float]], list[Any]]:
    """Seconds that each library takes for the figures of two sets of images, measured in turn; and the figures."""
    dist = Distributed("fp32")
    extractor = extractor_of(config, info, dataset, dist)
    n = config.metrics.num_images
    real, _ = dataset.__getitems__(list(range(n)))
    fake = (real.float() + 25 * torch.randn(real.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 255)
    fake = fake.to(torch.uint8)
    evaluator = FeatureEvaluator(
        extractor, reference_of(info, dataset), dist, num_images=n, batch_size=250, seed=0, extra={}
    )  # computing its reference is not timed

    def ours() -> dict[str, float]:
        features, _ = evaluator._extract(n, lambda first, count: real[first : first + count].to(dist.device))
        others, logits = evaluator._extract(n, lambda first, count: fake[first : first + count].to(dist.device))
        return scores(features, others, logits, 0)

    found: dict[str, list[float]] = {"gan_dist": [], "torch-fidelity": []}
    for _ in range(rounds + 1):  # the first round is not counted
        figures = []
        for name, work in (("gan_dist", ours), ("torch-fidelity", lambda: fidelity(extractor, real, fake))):
            start = time.perf_counter()
            figures.append(work())
            found[name].append(time.perf_counter() - start)
    return {name: seconds[1:] for name, seconds in found.items()}, figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", help="CONFIG.yaml and key.sub=value")
    parser.add_argument("--extractor", choices=["inception", "classifier"], default="inception")
    parser.add_argument("--beside-torch-fidelity", action="store_true")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_intermixed_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    root = Path(__file__).parent.parent
    paths = [Path(text) for text in options.settings if "=" not in text] or [root / "configs/dcgan_fashion_mnist.yaml"]
    name = "classifier" if options.beside_torch_fidelity else options.extractor
    with tempfile.TemporaryDirectory() as folder:
        weights = [f"metrics.inception_weights={random_inception(folder)}"] if name == "inception" else []
        own = [f"metrics.extractor={name}", f"metrics.num_images={options.images}", "model.conditional=false", *weights]
        config = load_config(paths[0], [*own, *(text for text in options.settings if "=" in text)])
        info = describe(source_of(config.data))
        dataset = load_dataset(source_of(config.data), info)
        assert isinstance(dataset, ImageTensor)
        if options.beside_torch_fidelity:
            seconds, figures = beside(config, info, dataset, options.rounds)
            ratios = [b / a for a, b in zip(*seconds.values())]
            print(f"gan_dist's speed over torch-fidelity's: {arena.spread(ratios)}; figures {figures}")
        else:
            seconds, figures = overhead(config, info, dataset, options.rounds), []
            ratios = [a / b for a, b in zip(*seconds.values())]
            print(f"bare forward passes over the whole evaluation: {arena.spread(ratios)}")
    for contestant, values in seconds.items():
        print(f"  {contestant:<16}{statistics.median(values):8.2f} s")
    arena.write(options.json, {"images": options.images, "seconds": seconds, "ratios": ratios, "figures": figures})


if __name__ == "__main__":
    main()
