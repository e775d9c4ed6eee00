"""Evaluate a generator: feature extractors, and FID, KID, Inception Score, precision and recall.

The name of a metric ends with the name of the feature extractor, for example `fid_classifier` or `fid_inception`,
because values from different extractors cannot be compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gan_dist.data import DataInfo
from gan_dist.data.in_memory import Images
from gan_dist.errors import UserError
from gan_dist.parallel.distributed import Distributed


class Evaluator(Protocol):
    """An object that measures generators. All processes call it together."""

    @property
    def protocol(self) -> dict[str, Any]:
        """The facts that the metrics depend on, as in JSON. Values are compared only if their protocols are equal."""

    def __call__(self, G: nn.Module, check: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Measure a generator in eval mode; returns the value of each metric by its name.

        Args:
            G: the generator.
            check: called between batches, equally often in all processes. It raises an error in all of them to break
                the measurement off.
        """


@dataclass(frozen=True)
class Reference:
    """The data set against which generators are measured.

    Attributes:
        images: the data set.
        info: its properties; see `gan_dist.data.datasets.describe`.
        key: identifies its content; see `gan_dist.data.key.reference_key`.
        class_probs: probability of each label for G, (num_classes,); None if G takes no label.
        workers: number of data workers that read the images on which a classifier is trained.
    """

    images: Images
    info: DataInfo
    key: str
    class_probs: Tensor | None
    workers: int = 2

    @property
    def protocol(self) -> dict[str, Any]:
        """What the protocol of a measurement against these images says about them."""
        return {
            "data": self.key,
            "image_shape": list(self.info.image_shape),
            "data_resizing": "centre, Lanczos",
        }


class NoFigure(UserError):
    """There can be no meaningful figure, for example because the classifier cannot tell the classes apart."""


def weights_hash(network: nn.Module) -> str:
    """Return the SHA-256 of the names, types, shapes and values of a network's weights, in hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def in_turn(dist: Distributed, count: int, check: Callable[[], None]) -> Iterator[int]:
    """Yield the numbers of this process's share of `count` batches, and call `check` before each.

    `check` is called equally often in all processes, although their shares may differ by one batch.
    """
    share = dist.share(count)
    for turn in range(-(-count // dist.world_size)):
        check()
        yield from share[turn : turn + 1]
