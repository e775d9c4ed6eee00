"""Judging a generator of points: how many modes it has found, and how many of its points lie at one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gan_dist import rng
from gan_dist.data.points import STD, modes
from gan_dist.kernels.switches import ieee_fp32
from gan_dist.parallel.distributed import Distributed
from gan_dist.rng import Purpose


def coverage(points: Tensor, centres: Tensor, std: float) -> tuple[int, float]:
    """Modes recovered and share of high-quality points, from points (N, 2) and centres (K, 2).

    A point is of high quality if it lies within 3 standard deviations of a centre; a mode is recovered if such a point
    lies at it (Srivastava et al. 2017, section 4.1). Of exact samples 98.9% are: 1 - exp(-9/2).
    """
    distance, nearest = torch.cdist(points.double(), centres.double()).min(dim=1)
    good = distance <= 3 * std
    return len(nearest[good].unique()), good.double().mean().item()


@torch.no_grad()
@ieee_fp32()
def sample_points(G: nn.Module, count: int, seed: int, class_probs: Tensor | None, dist: Distributed) -> Tensor:
    """Points (count, 2) of a generator in eval mode, on the CPU; each process makes its share."""
    share = dist.share(count)
    z_dim: int = G.z_dim  # type: ignore[assignment]
    weight = next(G.parameters())
    z = rng.latents(seed, Purpose.METRIC_LATENT, share.start, len(share), z_dim, like=weight)
    if class_probs is None:
        x = G(z)
    else:
        x = G(z, rng.labels(seed, Purpose.METRIC_LABEL, share.start, len(share), class_probs).to(weight.device))
    return dist.gather(x.flatten(1).float().cpu())


class PointsEvaluator:
    """`modes` and `high_quality` of a generator of points; used as `gan_dist.metrics.features.FeatureEvaluator` is."""

    def __init__(self, name: str, dist: Distributed, class_probs: Tensor | None, *, num_images: int, seed: int) -> None:
        self.name, self.dist, self.class_probs = name, dist, class_probs
        self.num_images, self.seed = num_images, seed

    @property
    def protocol(self) -> dict[str, Any]:
        """What a figure must be quoted with."""
        return {"data": self.name, "num_generated": self.num_images, "seed": self.seed}

    def __call__(self, G: nn.Module) -> dict[str, float]:
        points = sample_points(G, self.num_images, self.seed, self.class_probs, self.dist)
        found, quality = coverage(points, modes(self.name), STD[self.name])
        return {"modes": float(found), "high_quality": quality}
