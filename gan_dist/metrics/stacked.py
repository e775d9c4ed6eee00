"""Evaluate a generator of stacked images: how many modes it generates, and how well their frequencies fit the data."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gan_dist import rng
from gan_dist.data.in_memory import ImageTensor
from gan_dist.data.preprocess import to_uint8
from gan_dist.data.stacked import join_classes
from gan_dist.kernels.switches import ieee_fp32
from gan_dist.metrics import Reference, in_turn
from gan_dist.metrics.extractors import Extractor
from gan_dist.parallel.distributed import Distributed
from gan_dist.rng import Purpose

log = logging.getLogger(__name__)


def mode_coverage(modes: Tensor, p_data: Tensor) -> tuple[int, float]:
    """Count the modes among generated samples, and compute KL(samples || data) of the modes' frequencies.

    Args:
        modes: mode of each generated sample, int64 (N,) in 0 … K - 1.
        p_data: probability of each mode in the data set, (K,).

    Returns:
        The number of different modes, in 1 … K, and the Kullback-Leibler divergence in nats, which is 0 for equal
        frequencies.
    """
    p = torch.bincount(modes, minlength=len(p_data)).double() / len(modes)
    found = p > 0
    return int(found.sum()), (p[found] * (p[found] / p_data[found].double()).log()).sum().item()


def first_channel(dataset: ImageTensor, num_classes: int) -> ImageTensor:
    """Return the first channels of stacked images as a data set of grayscale images, with the labels of these.

    Args:
        dataset: stacked images uint8 (N, 3, H, W), with labels in 0 … num_classes^3 - 1.
        num_classes: number of classes of the grayscale images.

    Returns:
        Images uint8 (N, 1, H, W), with labels in 0 … num_classes - 1.
    """
    return ImageTensor(dataset.images[:, :1], dataset.labels // num_classes**2)


class StackedEvaluator:
    """Measures `modes` and `kl` of a generator of stacked images; see `mode_coverage`.

    A classifier of the grayscale images finds the class of each channel, and the three classes give the mode
    (Srivastava et al. 2017, "VEEGAN", section 4.2). Its interface is `gan_dist.metrics.Evaluator`, like that of
    `gan_dist.metrics.features.FeatureEvaluator`.

    Args:
        extractor: the classifier of the grayscale images, as a feature extractor.
        reference: the stacked images of the data set, for the frequency of each mode.
        dist: the processes.
        num_images: number of images to generate.
        batch_size: images per forward pass of G.
        seed: seed of the latents.
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
    ) -> None:
        self.extractor, self.reference, self.dist = extractor, reference, dist
        self.num_images, self.batch_size, self.seed = num_images, batch_size, seed
        counts = torch.bincount(reference.images.labels.cpu(), minlength=extractor.num_logits**3)
        self.p_data = counts / counts.sum()
        modes = int((counts > 0).sum())
        if dist.is_main and num_images < 10 * modes:
            log.warning(
                "metrics.num_images=%d for %d modes: so few images miss modes, and make kl too high; compare them only "
                "with figures of as many images (papers use 26000 for 1000 modes)",
                num_images,
                modes,
            )

    @property
    def protocol(self) -> dict[str, Any]:
        """The conditions of the measurement, which must be reported together with its results."""
        return {
            **self.reference.protocol,
            "weights": self.extractor.weights,
            "precision": "fp32",
            "num_generated": self.num_images,
            "num_modes": int((self.p_data > 0).sum()),
            "seed": self.seed,
        }

    @torch.no_grad()
    @ieee_fp32()
    def __call__(self, G: nn.Module, check: Callable[[], None] = lambda: None) -> dict[str, float]:
        z_dim: int = G.z_dim  # type: ignore[assignment]
        starts = range(0, self.num_images, self.batch_size)
        parts = [torch.empty(0, dtype=torch.int64)]
        for i in in_turn(self.dist, len(starts), check):
            count = min(self.batch_size, self.num_images - starts[i])
            like = next(G.parameters())
            x = to_uint8(G(rng.latents(self.seed, Purpose.METRIC_LATENT, starts[i], count, z_dim, like=like)))
            classes = [self.extractor(x[:, channel : channel + 1])[1].argmax(1) for channel in range(3)]
            parts.append(join_classes(torch.stack(classes, dim=1), self.extractor.num_logits).cpu())
        found, divergence = mode_coverage(self.dist.gather(torch.cat(parts)), self.p_data)
        return {"modes": float(found), "kl": divergence}
