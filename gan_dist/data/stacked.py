"""Stacked images: each of the three channels is a grayscale image from a labelled data set.

The label of a stacked image combines the three labels. With 10 classes there are 1,000 modes, so it is possible to
count how many of them a generator misses (Metz et al. 2017, "Unrolled generative adversarial networks", section 3.3.1,
on MNIST).
"""

from __future__ import annotations

from torch import Tensor

from gan_dist.rng import Purpose, below, words

NUM_STACKED = 100_000  # images of a stacked data set


def stack(images: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Make NUM_STACKED stacked images. The three images of each are drawn independently, and the same in every run.

    Args:
        images: uint8 (N, 1, H, W).
        labels: int64 (N,) in 0 … num_classes - 1.
        num_classes: number of classes of `labels`.

    Returns:
        Images uint8 (NUM_STACKED, 3, H, W), and labels int64 (NUM_STACKED,) in 0 … num_classes^3 - 1.
    """
    index = below(words(0, Purpose.STACK, 0, NUM_STACKED, 3), len(images))
    return images[:, 0][index], join_classes(labels[index], num_classes)


def join_classes(classes: Tensor, num_classes: int) -> Tensor:
    """Combine the classes (…, 3) of the three channels to one number (…): 100 a + 10 b + c for 10 classes."""
    first, second, third = classes.unbind(-1)
    return (first * num_classes + second) * num_classes + third
