"""Mode coverage of a generator of stacked images: how many of their modes it makes, and how evenly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gan_dist import rng
from gan_dist.data.in_memory import ImageTensor
from gan_dist.data.preprocess import to_uint8
from gan_dist.data.stacked import join_classes
from gan_dist.kernels.switches import ieee_fp32
from gan_dist.metrics.extractors import Extractor
from gan_dist.parallel.distributed import Distributed
from gan_dist.rng import Purpose


def mode_coverage(modes: Tensor, p_data: Tensor) -> tuple[int, float]:
    """How many different modes there are among samples, and KL(samples || data) of the modes' frequencies, in nats.

    Args:
        modes: of each sample, int64 (N,).
        p_data: probability of each mode in the data, (K,).
    """
    p = torch.bincount(modes, minlength=len(p_data)).double() / len(modes)
    found = p > 0
    return int(found.sum()), (p[found] * (p[found] / p_data[found].double()).log()).sum().item()


def first_channel(dataset: ImageTensor, num_classes: int) -> ImageTensor:
    """The grayscale images that are the first channels of stacked ones, with their labels."""
    return ImageTensor(dataset.images[:, :1], dataset.labels // num_classes**2)


class StackedEvaluator:
    """`modes` and `kl` of a generator of stacked images; used as `gan_dist.metrics.features.FeatureEvaluator` is.

    Each channel is told by a classifier of the images that are stacked (Srivastava et al. 2017, "VEEGAN", section 4.2).
    """

    def __init__(
        self,
        extractor: Extractor,
        dataset: ImageTensor,
        dist: Distributed,
        *,
        num_images: int,
        batch_size: int,
        seed: int,
    ) -> None:
        self.extractor, self.dist = extractor, dist
        self.num_images, self.batch_size, self.seed = num_images, batch_size, seed
        counts = torch.bincount(dataset.labels.cpu(), minlength=extractor.num_logits**3)
        self.p_data = counts / counts.sum()

    @property
    def protocol(self) -> dict[str, Any]:
        """What a figure must be quoted with."""
        return {"num_generated": self.num_images, "num_modes": int((self.p_data > 0).sum()), "seed": self.seed}

    @torch.no_grad()
    @ieee_fp32()
    def __call__(self, G: nn.Module) -> dict[str, float]:
        z_dim: int = G.z_dim  # type: ignore[assignment]
        starts = range(0, self.num_images, self.batch_size)
        parts = [torch.empty(0, dtype=torch.int64)]
        for i in self.dist.share(len(starts)):
            count = min(self.batch_size, self.num_images - starts[i])
            like = next(G.parameters())
            x = to_uint8(G(rng.latents(self.seed, Purpose.METRIC_LATENT, starts[i], count, z_dim, like=like)))
            classes = [self.extractor(x[:, channel : channel + 1])[1].argmax(1) for channel in range(3)]
            parts.append(join_classes(torch.stack(classes, dim=1), self.extractor.num_logits).cpu())
        found, divergence = mode_coverage(self.dist.gather(torch.cat(parts)), self.p_data)
        return {"modes": float(found), "kl": divergence}
