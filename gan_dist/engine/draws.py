"""What an iteration draws: a function of the run's seed, the purpose of the draw and the number of the image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gan_dist import rng
from gan_dist.checkpoint.state import State
from gan_dist.data.preprocess import fade, mirror
from gan_dist.game.augment import NUMBERS, augment
from gan_dist.rng import Purpose

ToFloat = Callable[[Tensor, torch.dtype], Tensor]


class Draws:
    """Latents and labels for G, and what D sees of images, which may be mirrored and augmented at random.

    Args:
        state: gives the size of the latents, their device and dtype, and how often the run has gone back.
        seed: `train.seed`.
        class_probs: probability of each label that G is asked for, (num_classes,); None if G takes no label.
        to_float: turns images as they are stored into floats of the given dtype, for example
            `gan_dist.data.preprocess.images_to_float`.
        hflip: mirror each real image with probability 1/2.
        augmentations: names of what is done to every image that D sees.

    Attributes:
        alpha: how far the newest layers of a growing run are faded in; real images are blended in the same way.
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
        self.like = next(state.G.parameters())
        self._latents = rng.Latents(state.G.z_dim, like=self.like)  # type: ignore[arg-type]

    @property
    def seed(self) -> int:
        """A run that went back to a checkpoint draws other numbers from there on, so that it does not fail again."""
        return rng.retry_seed(self.run_seed, self.state.retries)

    def latents(self, purpose: Purpose, first: int, count: int) -> Tensor:
        """Latents z from N(0, 1) for the images number first … first + count - 1 of the run: (count, z_dim)."""
        return self._latents(self.seed, purpose, first, count)

    def labels(self, purpose: Purpose, first: int, count: int) -> Tensor | None:
        """Labels to ask G for, with the frequencies of `class_probs`: (count,) int64, or None if G takes no label."""
        if self.class_probs is None:
            return None
        drawn = rng.labels(self.seed, purpose, first, count, self.class_probs)
        return rng.to_device(drawn, self.like.device)

    def labels_of(self, labels: Tensor) -> Tensor | None:
        """The labels of real images, or None if the networks take no label."""
        return labels if self.class_probs is not None else None

    def real_images(self, images: Tensor, first: int) -> Tensor:
        """What D sees of real images (N, C, H, W), as they are stored; they are number first … of the run."""
        x = self.to_float(images, self.like.dtype)
        if self.hflip:
            mirrored = rng.coins(self.seed, Purpose.FLIP, first, len(x))
            x = mirror(x, rng.to_device(mirrored, x.device))
        if self.alpha < 1:
            x = fade(x, self.alpha)
        return self.augmented(x, Purpose.AUGMENT_REAL, first)

    def augmented(self, x: Tensor, purpose: Purpose, first: int) -> Tensor:
        """What D sees of images (N, C, H, W) in [-1, 1]."""
        if not self.augmentations:
            return x
        return augment(x, self.augmentations, self._uniform(purpose, first, x, NUMBERS))

    def between(self, first: int, x: Tensor) -> Tensor:
        """A number in [0, 1) for each image of x: where to mix a real and a generated image, (N,)."""
        return self._uniform(Purpose.INTERPOLATE, first, x, 1).squeeze(1)

    def _uniform(self, purpose: Purpose, first: int, x: Tensor, dim: int) -> Tensor:
        drawn = torch.from_numpy(rng.uniform(self.seed, purpose, first, len(x), dim))
        return rng.to_device(drawn.to(x.dtype), x.device)
