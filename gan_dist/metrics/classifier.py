"""A feature extractor that is a small classifier, trained on the data set's own labels, as is usual for MNIST.

Metrics of its features are good for comparing runs on the same data set. They cannot be compared with metrics of
Inception features.
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
from gan_dist.data.loader import make_loader, read_batches
from gan_dist.data.preprocess import images_to_float
from gan_dist.kernels.switches import ieee_fp32
from gan_dist.parallel.distributed import Distributed
from gan_dist.rng import Purpose, torch_seed

log = logging.getLogger(__name__)

STEPS = 1000  # training steps of the classifier
BATCH_SIZE = 128  # images per training step


class _Quarters(nn.Module):
    """The mean over each quarter of a map: (N, C, H, W) -> (N, C, 2, 2).

    If the height or width is odd, the middle row or column belongs to both sides. `nn.AdaptiveAvgPool2d(2)` computes
    the same, but on a GPU its gradient is not deterministic.
    """

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        halves = (x[:, :, : (height + 1) // 2], x[:, :, height // 2 :])
        quarters = [q for half in halves for q in (half[..., : (width + 1) // 2], half[..., width // 2 :])]
        return torch.stack([quarter.mean((2, 3)) for quarter in quarters], dim=2).unflatten(2, (2, 2))


class Classifier(nn.Module):
    """The classifier: images x (N, C, H, W) in [-1, 1] -> features (N, 128) and logits (N, num_classes).

    Args:
        channels: channels C of the images.
        num_classes: number of classes.
    """

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
    """Return the classifier for a data set and a seed, in eval mode, on the device of each process.

    The main process loads it from the cache. If it is not there, the main process trains it, which takes seconds, and
    saves it in the cache. All processes call this function together.

    Args:
        dataset: images and labels to train on.
        num_classes: number of classes.
        seed: seed of the initial weights and the order of the images.
        cache: directory of the cache.
        dist: the processes.
    """
    with torch_seed(seed, Purpose.CLASSIFIER):
        classifier = Classifier(dataset[0][0].shape[0], num_classes)
    path = cache / f"classifier-{data_key(dataset, num_classes)}-{seed}.safetensors"

    def weights() -> dict[str, Tensor]:
        try:
            classifier.load_state_dict(load_file(path))
        except (OSError, SafetensorError, RuntimeError):  # the file is missing or damaged
            accuracy = _train(classifier.to(dist.device), dataset, seed)
            log.info("trained a classifier on the data's labels for the metrics: accuracy %.1f%%", accuracy)
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(f".tmp-{secrets.token_hex(4)}")
            save_file(classifier.state_dict(), temporary)
            temporary.rename(path)
        return {name: tensor.cpu() for name, tensor in classifier.state_dict().items()}

    classifier.load_state_dict(dist.from_main(weights))
    return classifier.to(dist.device).eval().requires_grad_(False)


@ieee_fp32()
def _train(classifier: Classifier, dataset: Images, seed: int) -> float:
    """Train with Adam and a cosine schedule; return the accuracy over the last 100 training batches in percent."""
    device = next(classifier.parameters()).device
    optimizer = torch.optim.Adam(classifier.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    batches = read_batches(lambda start: make_loader(dataset, BATCH_SIZE, seed, start, workers=2), 0, BATCH_SIZE)
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
