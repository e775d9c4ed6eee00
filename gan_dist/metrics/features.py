"""FID, KID, Inception Score, precision and recall of a generator against a data set, by well-kept libraries."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gan_dist import rng
from gan_dist.data.in_memory import Images
from gan_dist.data.preprocess import to_uint8
from gan_dist.kernels.switches import ieee_fp32
from gan_dist.metrics.extractors import Extractor
from gan_dist.parallel.distributed import Distributed
from gan_dist.rng import Purpose

MAX_REAL = 50_000  # images of the data set that the reference is made of, evenly spaced
MAX_NEIGHBOURS = 10_000  # real and generated images, each, between which precision and recall are measured


class _Identity(nn.Module):
    """In place of the network that torchmetrics would run once per metric: features are extracted once for all."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


class FeatureEvaluator:
    """Measures generators with one protocol, which is part of each result.

    All processes take part: each extracts the features of its share, then all have all of them, in one order, so that
    neither their number nor the batch size changes a result.

    Args:
        dataset: the reference; at most MAX_REAL of its images are used.
        num_images: images to generate. FID is biased upwards for few of them: compare only at equal numbers.
        class_probs: see `gan_dist.engine.draws.Draws`.
    """

    def __init__(
        self,
        extractor: Extractor,
        dataset: Images,
        dist: Distributed,
        class_probs: Tensor | None,
        *,
        num_images: int,
        batch_size: int,
        seed: int,
    ) -> None:
        self.extractor, self.dist, self.class_probs = extractor, dist, class_probs
        self.num_images, self.batch_size, self.seed = num_images, batch_size, seed
        self.num_real = min(len(dataset), MAX_REAL)
        index = [i * len(dataset) // self.num_real for i in range(self.num_real)]
        self.real, _ = self._extract(
            self.num_real, lambda first, count: dataset.__getitems__(index[first : first + count])[0].to(dist.device)
        )

    @property
    def protocol(self) -> dict[str, Any]:
        """What a figure must be quoted with."""
        from importlib.metadata import version

        return {
            "extractor": self.extractor.name,
            "num_generated": self.num_images,
            "num_real": self.num_real,
            "seed": self.seed,
            "library": f"torchmetrics {version('torchmetrics')}",
        }

    @ieee_fp32()
    def __call__(self, G: nn.Module) -> dict[str, float]:
        """What `scores` gives, with the extractor's name, for a generator in eval mode with fp32 weights."""

        def generate(first: int, count: int) -> Tensor:
            z_dim: int = G.z_dim  # type: ignore[assignment]
            z = rng.latents(self.seed, Purpose.METRIC_LATENT, first, count, z_dim, like=next(G.parameters()))
            if self.class_probs is None:
                return to_uint8(G(z))
            y = rng.labels(self.seed, Purpose.METRIC_LABEL, first, count, self.class_probs)
            return to_uint8(G(z, y.to(self.dist.device)))

        fake, logits = self._extract(self.num_images, generate)
        return {f"{k}_{self.extractor.name}": v for k, v in scores(self.real, fake, logits, self.seed).items()}

    @torch.no_grad()
    @ieee_fp32()
    def _extract(self, count: int, images: Callable[[int, int], Tensor]) -> tuple[Tensor, Tensor]:
        """Features and logits of `count` images, on the CPU; `images(first, n)` gives them as uint8 (n, C, H, W)."""
        batches = range(0, count, self.batch_size)
        parts = []
        for i in self.dist.share(len(batches)):  # whole batches, so that each is the same on any number of processes
            batch = images(batches[i], min(self.batch_size, count - batches[i]))
            parts.append(torch.cat([output.float().cpu() for output in self.extractor(batch)], dim=1))
        width = self.extractor.num_features + self.extractor.num_logits
        joined = self.dist.gather(torch.cat(parts) if parts else torch.empty(0, width))
        return joined[:, : self.extractor.num_features], joined[:, self.extractor.num_features :]


def scores(real: Tensor, fake: Tensor, logits: Tensor, seed: int) -> dict[str, float]:
    """`fid`, `kid`, `is`, `precision`, `recall` from features (N, D), (M, D) of real and generated images.

    The logits (M, K) are of the generated ones.

    FID: Heusel et al. 2017, equation 6. KID: Bińkowski et al. 2018, cubic kernel, mean over 100 subsets of 1,000 (or
    all if there are fewer). Inception Score: Salimans et al. 2016, section 4, mean over 10 splits. Precision and
    recall: Kynkäänniemi et al. 2019, equations 1 and 2, with 3 neighbours and as many real as generated images.
    """
    from torch_fidelity.metric_prc import prc_features_to_metric
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.inception import InceptionScore
    from torchmetrics.image.kid import KernelInceptionDistance

    alone: dict[str, Any] = {"sync_on_compute": False}  # every process has all features already
    with warnings.catch_warnings(), rng.torch_seed(seed, Purpose.METRIC_SUBSETS):
        warnings.simplefilter("ignore")  # that these metrics keep all features, which is meant
        fid = FrechetInceptionDistance(feature=_Identity(real.shape[1]), **alone)
        kid = KernelInceptionDistance(
            feature=_Identity(real.shape[1]), subset_size=min(1000, len(real), len(fake)), **alone
        )
        inception_score = InceptionScore(feature=_Identity(logits.shape[1]), **alone)
        for metric in (fid, kid):
            metric.update(real, real=True)
            metric.update(fake, real=False)
        inception_score.update(logits)
        results = {"fid": fid.compute(), "kid": kid.compute()[0], "is": inception_score.compute()[0]}
    count = min(len(real), len(fake), MAX_NEIGHBOURS)
    near = prc_features_to_metric(
        *(features[[i * len(features) // count for i in range(count)]] for features in (fake, real)),
        prc_neighborhood=min(3, count - 1),
        prc_batch_size=1000,
        save_cpu_ram=True,
        verbose=False,
    )
    return {name: value.item() for name, value in results.items()} | {k: near[k] for k in ("precision", "recall")}
