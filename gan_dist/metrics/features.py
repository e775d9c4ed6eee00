"""FID, KID, Inception Score, precision and recall of a generator, computed with torchmetrics and torch-fidelity."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gan_dist import rng
from gan_dist.data.preprocess import to_uint8
from gan_dist.kernels.switches import ieee_fp32
from gan_dist.metrics import Reference, in_turn
from gan_dist.metrics.extractors import Extractor
from gan_dist.parallel.distributed import Distributed
from gan_dist.parts import Table
from gan_dist.rng import Purpose

log = logging.getLogger(__name__)

MAX_REAL = 50_000  # the reference features come from at most so many images, evenly spaced in the data set
MAX_NEIGHBOURS = 10_000  # precision and recall use at most so many real and so many generated images
FEW = 10_000  # figures of fewer generated images come with a warning

# The valid keys of `metrics.extra`: metrics of users. Each is a function `metric(real, fake, logits, *, arguments)` of
# features of real and of generated images, (N, D) and (M, D), and of logits of the latter, (M, K). It returns a number.
METRICS = Table("metric", {})


class _Identity(nn.Module):
    """Takes the place of the feature extractor in torchmetrics.

    torchmetrics would run the feature extractor once for each metric. Here the features are extracted only once.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


class FeatureEvaluator:
    """Measures generators against a data set; see `scores`. It implements `gan_dist.metrics.Evaluator`.

    Each process extracts the features of its share of the images. Then all processes get all features in the same
    order, so the number of processes does not change the result.

    Args:
        extractor: the feature extractor.
        reference: the real images. At most MAX_REAL of them are used.
        dist: the processes.
        num_images: number of images to generate. FID is biased upwards if they are few, so compare only values for the
            same number.
        batch_size: images per forward pass of G and of the feature extractor.
        seed: seed of the latents and labels, and of KID's random subsets.
        extra: users' metrics by name; see METRICS.

    Attributes:
        real: features of the real images, float32 (N, num_features) on the CPU.
    """

    def __init__(
        self,
        extractor: Extractor,
        reference: Reference,
        dist: Distributed,
        *,
        num_images: int,
        batch_size: int,
        seed: int,
        extra: Mapping[str, partial[float]],
    ) -> None:
        self.extractor, self.reference, self.dist = extractor, reference, dist
        self.num_images, self.batch_size, self.seed, self.extra = num_images, batch_size, seed, extra
        dataset = reference.images
        wanted = min(len(dataset), MAX_REAL)
        index = [i * len(dataset) // wanted for i in range(wanted)]
        # Images that cannot be read are left out: stand-ins would count twice.
        self.real, _ = self._extract(
            wanted, lambda first, count: dataset.readable(index[first : first + count])[1].to(dist.device)
        )
        self.num_real = len(self.real)
        if self.num_real < wanted and dist.is_main:
            log.warning("metrics: %d of %d real images cannot be read and are left out", wanted - self.num_real, wanted)
        if dist.is_main and (num_images < FEW or self.num_real < extractor.num_features):
            log.warning(
                "metrics.num_images=%d, measured against %d real images: FID of few images is far too high (one "
                "generator had 41 at 100 images and 3.4 at 50,000); compare it only with FID of as many images, and "
                "set metrics.num_images=50000 for one that can be compared with published ones",
                num_images,
                self.num_real,
            )

    @property
    def protocol(self) -> dict[str, Any]:
        """The facts that the metrics depend on, which are stored with each result."""
        from importlib.metadata import version

        others = {name: f"{METRICS.where(name)} {metric.keywords}" for name, metric in self.extra.items()}
        return {
            **self.reference.protocol,
            "extractor": self.extractor.name,
            "weights": self.extractor.weights,
            "resizing": self.extractor.resizing,
            "precision": "fp32",
            "num_generated": self.num_images,
            "num_real": self.num_real,
            "seed": self.seed,
            "library": ", ".join(f"{name} {version(name)}" for name in ("torchmetrics", "torch-fidelity")),
        } | ({"extra": others} if others else {})

    @ieee_fp32()
    def __call__(self, G: nn.Module, check: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Measure a generator in eval mode; `check` is called between the batches and between the metrics.

        Returns:
            The results of `scores`, with the extractor's name added to each name: `fid_<extractor>`, ….
        """

        probs = self.reference.class_probs
        thresholds = None if probs is None else rng.label_thresholds(probs).to(self.dist.device)

        def generate(first: int, count: int) -> Tensor:
            z_dim: int = G.z_dim  # type: ignore[assignment]
            z = rng.latents(self.seed, Purpose.METRIC_LATENT, first, count, z_dim, like=next(G.parameters()))
            if thresholds is None:
                return to_uint8(G(z))
            return to_uint8(G(z, rng.labels(self.seed, Purpose.METRIC_LABEL, first, count, thresholds)))

        fake, logits = self._extract(self.num_images, generate, check)
        found = scores(self.real, fake, logits, self.seed, check)
        for name, metric in self.extra.items():
            check()
            found[name] = float(metric(self.real, fake, logits))
        return {f"{name}_{self.extractor.name}": value for name, value in found.items()}

    @torch.no_grad()
    @ieee_fp32()
    def _extract(
        self, count: int, images: Callable[[int, int], Tensor], check: Callable[[], None] = lambda: None
    ) -> tuple[Tensor, Tensor]:
        """Extract the features and logits of images with all processes.

        Args:
            count: number of images.
            images: called as `images(first, n)`; returns the images first … first + n - 1, uint8 (n, C, H, W), or
                fewer if some of them cannot be read.
            check: called before each batch.

        Returns:
            Features (count, num_features) and logits (count, num_logits), float32 on the CPU; fewer if images cannot be
            read.
        """
        batches = range(0, count, self.batch_size)
        parts = []
        # Processes share whole batches, so that a batch holds the same images for any number of processes.
        for i in in_turn(self.dist, len(batches), check):
            batch = images(batches[i], min(self.batch_size, count - batches[i]))
            if len(batch):
                parts.append(torch.cat([output.float().cpu() for output in self.extractor(batch)], dim=1))
        width = self.extractor.num_features + self.extractor.num_logits
        joined = self.dist.gather(torch.cat(parts) if parts else torch.empty(0, width))
        return joined[:, : self.extractor.num_features], joined[:, self.extractor.num_features :]


def scores(
    real: Tensor, fake: Tensor, logits: Tensor, seed: int, check: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """Compute FID, KID, Inception Score, precision and recall.

    - `fid`: Heusel et al. 2017, equation 6.
    - `kid`: Bińkowski et al. 2018, with the cubic kernel; the mean over 100 subsets of 1,000 images, or of all images
      if there are fewer.
    - `is`: Inception Score (Salimans et al. 2016, section 4); the mean over 10 splits.
    - `precision`, `recall`: Kynkäänniemi et al. 2019, equations 1 and 2, with 3 neighbours and equally many real and
      generated images. Both are in [0, 1].

    Args:
        real: features of real images (N, D).
        fake: features of generated images (M, D).
        logits: logits of the generated images (M, K).
        seed: seed of KID's random subsets.
        check: called before each metric.

    Returns:
        The five values by these names.
    """
    from torch_fidelity.metric_prc import prc_features_to_metric
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.inception import InceptionScore
    from torchmetrics.image.kid import KernelInceptionDistance

    alone: dict[str, Any] = {"sync_on_compute": False}  # each process has all features, so none are sent
    with warnings.catch_warnings(), rng.torch_seed(seed, Purpose.METRIC_SUBSETS):
        warnings.simplefilter("ignore")  # torchmetrics warns that these metrics keep all features in memory
        fid = FrechetInceptionDistance(feature=_Identity(real.shape[1]), **alone)
        kid = KernelInceptionDistance(
            feature=_Identity(real.shape[1]), subset_size=min(1000, len(real), len(fake)), **alone
        )
        inception_score = InceptionScore(feature=_Identity(logits.shape[1]), **alone)
        for metric in (fid, kid):
            metric.update(real, real=True)
            metric.update(fake, real=False)
        inception_score.update(logits)
        check()
        results = {"fid": fid.compute()}
        check()
        results["kid"] = kid.compute()[0]
        results["is"] = inception_score.compute()[0]
    check()
    count = min(len(real), len(fake), MAX_NEIGHBOURS)
    near = prc_features_to_metric(
        *(features[[i * len(features) // count for i in range(count)]] for features in (fake, real)),
        prc_neighborhood=min(3, count - 1),
        prc_batch_size=1000,
        save_cpu_ram=True,
        verbose=False,
    )
    return {name: value.item() for name, value in results.items()} | {k: near[k] for k in ("precision", "recall")}
