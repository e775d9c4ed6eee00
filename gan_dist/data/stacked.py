"""Stacked images: three grayscale images of a labelled set as the channels of one, whose label is the triple of theirs.

With 10 classes these are 1,000 modes that can be told apart, by which the field counts what a generator leaves out
(Metz et al. 2017, "Unrolled generative adversarial networks", section 3.3.1, on MNIST).
"""

from __future__ import annotations

import torch
from torch import Tensor

from gan_dist.rng import Purpose, uniform

NUM_STACKED = 100_000  # images of a stacked data set


def stack(images: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """uint8 (N, 1, H, W) and int64 (N,) to (NUM_STACKED, 3, H, W) and labels in 0 … num_classes^3 - 1.

    The three are drawn independently, the same in every run.
    """
    index = torch.from_numpy(uniform(0, Purpose.STACK, 0, NUM_STACKED, 3) * len(images)).long()
    return images[:, 0][index], join_classes(labels[index], num_classes)


def join_classes(classes: Tensor, num_classes: int) -> Tensor:
    """The classes (…, 3) of the three channels as one number (…): 100 a + 10 b + c for 10 classes."""
    first, second, third = classes.unbind(-1)
    return (first * num_classes + second) * num_classes + third
