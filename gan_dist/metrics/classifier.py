"""Features of a small classifier trained on the data set's own labels, as is usual for MNIST.

Good for comparing runs on one data set. Its figures have nothing to do with those of Inception features.
"""

from __future__ import annotations

import logging
import secrets
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from gan_dist.data.in_memory import Images, data_key
from gan_dist.data.loader import make_loader
from gan_dist.data.preprocess import images_to_float
from gan_dist.kernels.switches import ieee_fp32
from gan_dist.parallel.distributed import Distributed
from gan_dist.rng import Purpose, torch_seed

log = logging.getLogger(__name__)

STEPS = 1000
BATCH_SIZE = 128


class _Quarters(nn.Module):
    """The mean over each quarter of a map: (N, C, H, W) -> (N, C, 2, 2). A middle row or column belongs to both sides.

    That is `nn.AdaptiveAvgPool2d(2)`, whose gradient does not have the same bits each time on a GPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        halves = (x[:, :, : (height + 1) // 2], x[:, :, height // 2 :])
        quarters = [q for half in halves for q in (half[..., : (width + 1) // 2], half[..., width // 2 :])]
        return torch.stack([quarter.mean((2, 3)) for quarter in quarters], dim=2).unflatten(2, (2, 2))


class Classifier(nn.Module):
    """x (N, C, H, W) in [-1, 1] -> features (N, 128) and logits (N, num_classes)."""

    num_features = 128

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 128, 3, stride=2, padding=1),
            nn.ReLU(),
            _Quarters(),
            nn.Flatten(),
            nn.Linear(512, self.num_features),
            nn.ReLU(),
        )
        self.head = nn.Linear(self.num_features, num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x)
        return features, self.head(features)


def trained_classifier(dataset: Images, num_classes: int, seed: int, cache: Path, dist: Distributed) -> Classifier:
    """The classifier of this data set and seed: from the cache, or trained now, in seconds, by the main process."""
    with torch_seed(seed, Purpose.CLASSIFIER):
        classifier = Classifier(dataset[0][0].shape[0], num_classes)
    path = cache / f"classifier-{data_key(dataset, num_classes)}-{seed}.safetensors"

    def weights() -> dict[str, Tensor]:
        try:
            classifier.load_state_dict(load_file(path))
        except (OSError, SafetensorError, RuntimeError):  # absent, or not what was written there
            accuracy = _train(classifier.to(dist.device), dataset, seed)
            log.info("trained a classifier on the data's labels for the metrics: %.1f%% right", accuracy)
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(f".tmp-{secrets.token_hex(4)}")
            save_file(classifier.state_dict(), temporary)
            temporary.rename(path)
        return {name: tensor.cpu() for name, tensor in classifier.state_dict().items()}

    classifier.load_state_dict(dist.from_main(weights))
    return classifier.to(dist.device).eval().requires_grad_(False)


@ieee_fp32()
def _train(classifier: Classifier, dataset: Images, seed: int) -> float:
    """Adam with a cosine schedule; returns the share of right answers over the last 100 batches, in percent."""
    device = next(classifier.parameters()).device
    optimizer = torch.optim.Adam(classifier.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    batches = iter(make_loader(dataset, BATCH_SIZE, seed, start=0, workers=2))
    right = []
    for _ in range(STEPS):
        images, labels = (tensor.to(device) for tensor in next(batches))
        _, logits = classifier(images_to_float(images))
        optimizer.zero_grad()
        F.cross_entropy(logits, labels).backward()
        optimizer.step()
        schedule.step()
        right.append((logits.argmax(1) == labels).float().mean())
    return 100 * torch.stack(right[-100:]).mean().item()
