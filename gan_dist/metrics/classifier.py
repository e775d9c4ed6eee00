"""A feature extractor that is a small classifier, trained on the data set's own labels, as is usual for MNIST.

Metrics of its features are good for comparing runs on the same data set. They cannot be compared with metrics of
Inception features.

Runs share trained classifiers through a cache, and each run keeps a copy of its own. A file of weights is not believed:
it must hold the weights that were saved, and the classifier must still know as many real images as after its training.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from gan_dist.data.in_memory import Images
from gan_dist.data.loader import make_loader, read_batches
from gan_dist.data.preprocess import images_to_float
from gan_dist.errors import UserError
from gan_dist.files import check_disk, open_regular, replacing
from gan_dist.kernels.switches import ieee_fp32
from gan_dist.metrics import NoFigure, weights_hash
from gan_dist.parallel.distributed import Distributed
from gan_dist.rng import Purpose, torch_seed

log = logging.getLogger(__name__)

STEPS = 1000  # training steps of the classifier
BATCH_SIZE = 128  # images per training step
CHECKED = 1000  # real images, evenly spaced in the data set, of which a classifier must know the classes
TOLERANCE = 0.02  # a loaded classifier may know this share of them less than after its training, on another device
SKILL = 0.1  # how far a classifier must come from guessing the most frequent class, 0, to knowing all images, 1


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


_INSTEAD = "set metrics.extractor=inception, or metrics.every_kimg=0 for no figures"


def trained_classifier(
    images: Images,
    num_classes: int,
    key: str,
    seed: int,
    cache: Path,
    run_dir: Path | None,
    dist: Distributed,
    workers: int = 2,
) -> Classifier:
    """Return the classifier for a data set and a seed, in eval mode, on the device of each process.

    The main process loads it from the run directory, where the run keeps its own copy, or from the cache. If neither
    has a usable one, the main process trains it, which takes seconds, and saves it in both. All processes call this
    function together.

    Args:
        images: images and labels to train on.
        num_classes: number of classes.
        key: identifies the content of `images`.
        seed: seed of the initial weights and the order of the images.
        cache: directory of the cache, which all runs share.
        run_dir: the run directory; None if there is no run.
        dist: the processes.
        workers: number of data workers that read the images, unless these are in memory.

    Raises:
        NoFigure: there are too few classes, too few images of each, or the classifier cannot tell the classes apart.
    """
    if num_classes < 2:
        raise NoFigure(f"metrics.extractor=classifier needs at least two classes, not {num_classes}; {_INSTEAD}")

    def fresh() -> Classifier:
        with torch_seed(seed, Purpose.CLASSIFIER):
            return Classifier(images[0][0].shape[0], num_classes).to(dist.device)

    def weights() -> dict[str, Tensor]:
        if len(images) < 2 * num_classes:
            raise NoFigure(
                f"metrics.extractor=classifier: {len(images)} images of {num_classes} classes can only be learnt by "
                f"heart, because most classes have a single image; {_INSTEAD}"
            )
        name = f"classifier-{_identity(images, num_classes, key)}-{seed}.safetensors"
        places = [folder / name for folder in (run_dir, cache) if folder]
        known = _Known(images, dist.device)
        for i, path in enumerate(places):
            if found := _load(path, fresh(), known):
                missing = places[:i]  # the cache gets no weights from a run directory, which may be a stranger's
                break
        else:
            missing = _writable(places)
            found = _trained(fresh(), images, seed, known, workers)
        classifier, share = found
        for path in missing:
            _save(path, classifier, share)
        return {name: tensor.cpu() for name, tensor in classifier.state_dict().items()}

    shared = fresh()
    shared.load_state_dict(dist.from_main(weights))
    return shared.eval().requires_grad_(False)


def _identity(images: Images, num_classes: int, key: str) -> str:
    """Return 16 hexadecimal digits that identify what a classifier is trained on: images, their shape, and all labels.

    The key of some data sets covers only a part of their labels.
    """
    digest = hashlib.sha256(f"{key} {len(images)} {list(images[0][0].shape)} {num_classes}".encode())
    digest.update(images.labels.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


class _Known:
    """A function that returns for a classifier the share of real images, at most CHECKED, whose class it knows.

    Attributes:
        least: a classifier that knows a smaller share has no skill.

    Args:
        images: the data set; the images are evenly spaced in it.
        device: the device of the classifiers.
    """

    def __init__(self, images: Images, device: torch.device) -> None:
        count = min(len(images), CHECKED)
        pixels, labels = images.__getitems__([i * len(images) // count for i in range(count)])
        self._pixels, self._labels = pixels.to(device), labels.to(device)
        guessing = torch.bincount(images.labels.cpu()).max().item() / len(images)
        self.least = guessing + SKILL * (1 - guessing)

    @torch.no_grad()
    @ieee_fp32()
    def __call__(self, classifier: Classifier) -> float:
        answers = [classifier(images_to_float(part))[1].argmax(1) for part in self._pixels.split(BATCH_SIZE)]
        return (torch.cat(answers) == self._labels).float().mean().item()


def _load(path: Path, classifier: Classifier, known: _Known) -> tuple[Classifier, float] | None:
    """Load weights into a classifier and check them.

    Returns:
        The classifier and the share of real images that it knows; None, with a warning, if the weights cannot be used.
    """
    most = 2 * sum(tensor.nbytes for tensor in classifier.state_dict().values())
    try:
        with open_regular(path, most, links=True) as opened, safe_open(f"/dev/fd/{opened.fileno()}", "pt") as file:
            noted = file.metadata() or {}
            classifier.load_state_dict({name: file.get_tensor(name) for name in classifier.state_dict()})
        if weights_hash(classifier) != noted.get("sha256"):
            raise ValueError("these are not the weights that were saved")
        if not all(tensor.isfinite().all() for tensor in classifier.state_dict().values()):
            raise ValueError("weights are not finite")
        share, least = known(classifier), max(known.least, float(noted.get("known", "1")) - TOLERANCE)
        if not share >= least:
            raise ValueError(f"it knows {share:.1%} of the real images, not at least {least:.1%}")
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        log.warning("%s: this classifier is not used: %s", path, " ".join(str(error).split())[:200])
        return None
    return classifier, share


def _writable(places: Sequence[Path]) -> list[Path]:
    """Return the files that can be written, with a warning for each other one. This is tried before the training.

    Raises:
        UserError: none can be written.
    """
    writable = []
    for path in places:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            check_disk(path.parent)
            writable.append(path)
        except OSError as error:
            problem = f"{path.parent}: the classifier for the metrics cannot be written there ({error.strerror})"
            log.warning("%s; set GAN_DIST_CACHE to another directory", problem)
    if not writable:
        raise UserError(f"{problem}; set GAN_DIST_CACHE to another directory, or metrics.every_kimg=0 for no metrics")
    return writable


def _save(path: Path, classifier: Classifier, share: float) -> None:
    """Save a classifier with what `_load` checks: the hash of its weights, and the share of images that it knows."""
    tensors = {name: tensor.cpu() for name, tensor in classifier.state_dict().items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(save(tensors, {"sha256": weights_hash(classifier), "known": f"{share:.6f}"}))
    except OSError as error:
        log.warning("%s: the classifier for the metrics cannot be kept there (%s)", path, error)


def _trained(
    classifier: Classifier, images: Images, seed: int, known: _Known, workers: int
) -> tuple[Classifier, float]:
    """Train a classifier; return it, and the share of real images that it knows.

    Raises:
        NoFigure: it cannot tell the classes apart.
    """
    accuracy = _train(classifier, images, seed, workers)
    log.info("trained a classifier on the data's labels for the metrics: accuracy %.1f%%", accuracy)
    if not (share := known(classifier)) >= known.least:
        raise NoFigure(
            f"metrics.extractor=classifier: the trained classifier knows only {share:.1%} of the real images, not at "
            f"least {known.least:.1%}, so its features mean nothing; {_INSTEAD}"
        )
    return classifier, share


@ieee_fp32()
def _train(classifier: Classifier, dataset: Images, seed: int, workers: int) -> float:
    """Train with Adam and a cosine schedule; return the accuracy over the last 100 training batches in percent."""
    device = next(classifier.parameters()).device
    optimizer = torch.optim.Adam(classifier.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    batches = read_batches(lambda start: make_loader(dataset, BATCH_SIZE, seed, start, workers), 0, BATCH_SIZE)
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
