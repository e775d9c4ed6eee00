"""Evaluate a generator of points: how many modes it has found, and which share of its points is close to a mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gan_dist import rng
from gan_dist.data.points import STD, modes
from gan_dist.kernels.switches import ieee_fp32
from gan_dist.parallel.distributed import Distributed
from gan_dist.rng import Purpose


def coverage(points: Tensor, centres: Tensor, std: float) -> tuple[int, float]:
    """Count the recovered modes and the high-quality points (Srivastava et al. 2017, section 4.1).

    A point has high quality if its distance to the nearest centre is at most 3 standard deviations. For points drawn
    from the data set's own distribution this share is 1 - exp(-9/2) = 98.9%. A mode is recovered if at least one
    high-quality point belongs to it.

    Args:
        points: generated points (N, 2).
        centres: centres of the modes (K, 2).
        std: standard deviation of each mode.

    Returns:
        The number of recovered modes, in 0 … K, and the share of high-quality points, in [0, 1].
    """
    distance, nearest = torch.cdist(points.double(), centres.double()).min(dim=1)
    good = distance <= 3 * std
    return len(nearest[good].unique()), good.double().mean().item()


@torch.no_grad()
@ieee_fp32()
def sample_points(G: nn.Module, count: int, seed: int, class_probs: Tensor | None, dist: Distributed) -> Tensor:
    """Generate points with all processes; each process generates its share and gets all points.

    Args:
        G: a generator of points, in eval mode.
        count: number of points.
        seed: seed of latents and labels.
        class_probs: probability of each label (num_classes,); None if G takes no label.
        dist: the processes.

    Returns:
        Points (count, 2), float32 on the CPU.
    """
    share = dist.share(count)
    z_dim: int = G.z_dim  # type: ignore[assignment]
    weight = next(G.parameters())
    z = rng.latents(seed, Purpose.METRIC_LATENT, share.start, len(share), z_dim, like=weight)
    if class_probs is None:
        x = G(z)
    else:
        thresholds = rng.label_thresholds(class_probs).to(weight.device)
        x = G(z, rng.labels(seed, Purpose.METRIC_LABEL, share.start, len(share), thresholds))
    return dist.gather(x.flatten(1).float().cpu())


class PointsEvaluator:
    """Measures `modes` and `high_quality` of a generator of points; see `coverage`.

    Its interface is `gan_dist.metrics.Evaluator`, like that of `gan_dist.metrics.features.FeatureEvaluator`.

    Args:
        name: "ring" or "grid".
        dist: the processes.
        class_probs: probability of each label (num_classes,); None if G takes no label.
        num_images: number of points to generate.
        seed: seed of latents and labels.
    """

    def __init__(self, name: str, dist: Distributed, class_probs: Tensor | None, *, num_images: int, seed: int) -> None:
        self.name, self.dist, self.class_probs = name, dist, class_probs
        self.num_images, self.seed = num_images, seed

    @property
    def protocol(self) -> dict[str, Any]:
        """The conditions of the measurement, which must be reported together with its results."""
        return {"data": self.name, "num_generated": self.num_images, "seed": self.seed}

    def __call__(self, G: nn.Module, check: Callable[[], None] = lambda: None) -> dict[str, float]:
        check()
        points = sample_points(G, self.num_images, self.seed, self.class_probs, self.dist)
        found, quality = coverage(points, modes(self.name), STD[self.name])
        return {"modes": float(found), "high_quality": quality}
