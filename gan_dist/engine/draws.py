"""Random draws of an iteration. Each is a function of the run's seed, its purpose and the number of the image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from gan_dist import rng
from gan_dist.checkpoint.state import State
from gan_dist.data.preprocess import fade, mirror
from gan_dist.game.augment import NUMBERS, augment
from gan_dist.rng import Purpose

ToFloat = Callable[[Tensor, torch.dtype], Tensor]


class Draws:
    """Draws latents and labels for G, and prepares the images that D sees, with random mirroring and augmentation.

    Image number n of a run is the n-th real image that D sees. Generated images have numbers too: in a D step those of
    the real images in the batch, and in a G step those of the next batch.

    Args:
        state: the state of the run. It gives the size, device and dtype of the latents, and counts the rollbacks.
        seed: `train.seed`.
        class_probs: probability of each label for G, (num_classes,); None if G takes no label.
        to_float: turns images as they are stored into floats of the given dtype, for example
            `gan_dist.data.preprocess.images_to_float`.
        hflip: mirror each real image with probability 1/2.
        augmentations: names of the augmentations in `gan_dist.game.augment` that every image for D gets.

    Attributes:
        alpha: how far the newest layers are faded in with progressive growing, in [0, 1]. Real images are blended in
            the same way.
        blocks: what makes the random numbers of each kind. A plan of the run's cost leaves their work out.
    """

    alpha = 1.0

    def __init__(
        self,
        state: State,
        seed: int,
        class_probs: Tensor | None,
        to_float: ToFloat,
        hflip: bool,
        augmentations: Sequence[str],
    ) -> None:
        self.state, self.run_seed = state, seed
        self.class_probs, self.to_float = class_probs, to_float
        self.hflip, self.augmentations = hflip, augmentations
        self.like = like = next(state.G.parameters())
        z_dim: int = state.G.z_dim  # type: ignore[assignment]
        self.blocks = {
            "latents": rng.Blocks(partial(rng.latents, z_dim=z_dim, like=like)),
            "flips": rng.Blocks(partial(rng.coins, device=like.device)),
            "augmentation": rng.Blocks(partial(rng.words, dim=NUMBERS, device=like.device)),
            "between": rng.Blocks(partial(rng.words, dim=1, device=like.device)),
        }
        if class_probs is not None:
            thresholds = rng.label_thresholds(class_probs).to(like.device)
            self.blocks["labels"] = rng.Blocks(partial(rng.labels, thresholds=thresholds))

    @property
    def seed(self) -> int:
        """The seed of all draws. It changes when the run goes back, so that the same failure does not repeat."""
        return rng.retry_seed(self.run_seed, self.state.retries)

    def latents(self, purpose: Purpose, first: int, count: int) -> Tensor:
        """Draw latents z from N(0, 1) for the images first … first + count - 1 of the run: (count, z_dim)."""
        return self.blocks["latents"](self.seed, purpose, first, count)

    def labels(self, purpose: Purpose, first: int, count: int) -> Tensor | None:
        """Draw labels for G with the probabilities `class_probs`: (count,) int64; None if G takes no label."""
        return None if self.class_probs is None else self.blocks["labels"](self.seed, purpose, first, count)

    def labels_of(self, labels: Tensor) -> Tensor | None:
        """Return the labels of real images unchanged; None if the networks take no label."""
        return labels if self.class_probs is not None else None

    def real_images(self, images: Tensor, first: int) -> Tensor:
        """Prepare real images for D: convert to float, mirror, blend for a growing network, and augment.

        Args:
            images: as they are stored, usually uint8 (N, C, H, W).
            first: number of the first of them in the run.

        Returns:
            Floats of the same shape; images are in [-1, 1] before the augmentation.
        """
        x = self.to_float(images, self.like.dtype)
        if self.hflip:
            x = mirror(x, self.blocks["flips"](self.seed, Purpose.FLIP, first, len(x)))
        if self.alpha < 1:
            x = fade(x, self.alpha)
        return self.augmented(x, Purpose.AUGMENT_REAL, first)

    def augmented(self, x: Tensor, purpose: Purpose, first: int) -> Tensor:
        """Augment images for D, or return them unchanged if the run has no augmentation.

        Args:
            x: real or generated images (N, C, H, W) in [-1, 1].
            purpose: which random numbers to use.
            first: number of the first of the images in the run.
        """
        if not self.augmentations:
            return x
        return augment(x, self.augmentations, self.blocks["augmentation"](self.seed, purpose, first, len(x)))

    def between(self, first: int, x: Tensor) -> Tensor:
        """Draw a number u in [0, 1) for each image of x: (N,). The gradient penalty needs it to mix images."""
        bits = self.blocks["between"](self.seed, Purpose.INTERPOLATE, first, len(x))
        return rng.unit(bits).squeeze(1).to(x.dtype)
