"""Random draws of an iteration. Each is a function of the run's seed, its purpose and the number of the image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from gan_dist import rng
from gan_dist.checkpoint.state import State
from gan_dist.data.preprocess import fade, mirror
from gan_dist.engine.scalars import Scalars
from gan_dist.game.augment import NUMBERS, Applied, augment
from gan_dist.rng import Purpose

ToFloat = Callable[[Tensor, torch.dtype], Tensor]

BLOCK_ON_GPU = 8 * rng.BLOCK  # on a GPU a larger block takes hardly more time: most of it is spent on starting kernels


class Drawn(NamedTuple):
    """What is drawn for the generated images of a micro-batch.

    Attributes:
        z: latents (n, z_dim).
        y: labels (n,) int64; None if G takes no label.
        bits: random bits for the augmentation, int64 (n, NUMBERS); None if the run has no augmentation.
        u: numbers in [0, 1), (n,), by which the gradient penalty mixes real and generated images; None if it does not.
    """

    z: Tensor
    y: Tensor | None
    bits: Tensor | None
    u: Tensor | None = None


class Draws:
    """Draws latents and labels for G, and prepares the images that D sees, with random mirroring and augmentation.

    Image number n of a run is the n-th real image that D sees. Generated images have numbers too: in a D step those of
    the real images in the batch, and in a G step those of the next batch.

    The numbers of a whole block of samples are drawn in advance, outside of the steps. A step looks up the rows of its
    samples, from a row whose number it reads on the device. So it can be a CUDA graph.

    Args:
        state: the state of the run. It gives the size, device and dtype of the latents, and counts the rollbacks.
        seed: `train.seed`.
        class_probs: probability of each label for G, (num_classes,); None if G takes no label.
        to_float: turns images as they are stored into floats of the given dtype, for example
            `gan_dist.data.preprocess.images_to_float`.
        hflip: mirror each real image with probability 1/2.
        augmentations: what every image for D gets; see `gan_dist.game.augment.make_augmentations`.
        scalars: holds the number "row", which `begin` returns.

    Attributes:
        alpha: how far the newest layers are faded in with progressive growing, in [0, 1]. Real images are blended in
            the same way.
        draw: functions of seed, purpose, first and count that draw the random numbers of each kind. A plan of the
            run's cost leaves their work out.
    """

    alpha = 1.0

    def __init__(
        self,
        state: State,
        seed: int,
        class_probs: Tensor | None,
        to_float: ToFloat,
        hflip: bool,
        augmentations: Sequence[Applied],
        scalars: Scalars,
    ) -> None:
        self.state, self.run_seed, self.scalars = state, seed, scalars
        self.class_probs, self.to_float = class_probs, to_float
        self.hflip, self.augmentations = hflip, augmentations
        self.like = like = next(state.G.parameters())
        z_dim: int = state.G.z_dim  # type: ignore[assignment]
        self.draw: dict[str, Callable[[int, Purpose, int, int], Tensor]] = {
            "latents": partial(rng.latents, z_dim=z_dim, like=like),
            "flips": partial(rng.coins, device=like.device),
            "augmentation": partial(rng.words, dim=NUMBERS, device=like.device),
            "between": partial(rng.words, dim=1, device=like.device),
        }
        if class_probs is not None:
            thresholds = rng.label_thresholds(class_probs).to(like.device)
            self.draw["labels"] = partial(rng.labels, thresholds=thresholds)
        self._block = BLOCK_ON_GPU if like.device.type == "cuda" else rng.BLOCK
        self._window = (0, 0, 0)  # the seed, the first sample and the number of samples of the tables
        self._tables: dict[tuple[str, Purpose], Tensor] = {}
        self._places = torch.arange(0, device=like.device)

    @property
    def seed(self) -> int:
        """The seed of all draws. It changes when the run goes back, so that the same failure does not repeat."""
        return rng.retry_seed(self.run_seed, self.state.retries)

    def begin(self, first: int, count: int) -> int:
        """Have the random numbers of the samples first … first + count - 1 ready; returns the row of the first one.

        Call this before each step, and set the number "row" of the scalars to the result. `count` is the size of the
        batch of this process.
        """
        seed, start, size = self._window
        if seed != self.seed or not start <= first <= first + count <= start + size:
            grown = max(self._block, count) > size
            self._window = seed, start, size = self.seed, first, max(self._block, count, size)
            if grown:
                self._tables, self._places = {}, torch.arange(size, device=self.like.device)
            for (kind, purpose), table in self._tables.items():
                table.copy_(self.draw[kind](seed, purpose, start, size))  # in place: graphs know the table's address
        return first - start

    def _rows(self, kind: str, purpose: Purpose, part: slice) -> Tensor:
        """Look up the random numbers of a micro-batch: (n, …)."""
        if (kind, purpose) not in self._tables:
            self._tables[kind, purpose] = self.draw[kind](self._window[0], purpose, *self._window[1:])
        return self._tables[kind, purpose].index_select(0, self._places[part] + self.scalars["row"])

    def for_D(self, part: slice, y: Tensor | None, mixes: bool) -> Drawn:
        """Draw what the generated images of a micro-batch need in a D step.

        Args:
            part: which images of this process's batch.
            y: the labels to use; None to draw labels.
            mixes: draw `u` too.
        """
        drawn = self._drawn_for(part, y, (Purpose.D_LATENT, Purpose.D_LABEL, Purpose.AUGMENT_D_FAKE))
        if not mixes:
            return drawn
        u = rng.unit(self._rows("between", Purpose.INTERPOLATE, part)).squeeze(1)
        return drawn._replace(u=u.to(self.like.dtype))

    def for_G(self, part: slice, y: Tensor | None) -> Drawn:
        """Draw what the generated images of a micro-batch need in a G step; the arguments are those of `for_D`."""
        return self._drawn_for(part, y, (Purpose.G_LATENT, Purpose.G_LABEL, Purpose.AUGMENT_G_FAKE))

    def _drawn_for(self, part: slice, y: Tensor | None, purposes: tuple[Purpose, Purpose, Purpose]) -> Drawn:
        latent, label, augmentation = purposes
        if y is None and self.class_probs is not None:
            y = self._rows("labels", label, part)
        return Drawn(self._rows("latents", latent, part), y, self._bits(augmentation, part))

    def _bits(self, purpose: Purpose, part: slice) -> Tensor | None:
        """Draw the random bits for `augmented`: int64 (n, NUMBERS); None if the run has no augmentation."""
        return self._rows("augmentation", purpose, part) if self.augmentations else None

    def labels_of(self, labels: Tensor) -> Tensor | None:
        """Return the labels of real images unchanged; None if the networks take no label."""
        return labels if self.class_probs is not None else None

    def real_images(self, images: Tensor) -> Tensor:
        """Prepare the real images of a batch for D: to floats, mirrored, blended for a growing network, and augmented.

        Args:
            images: as they are stored, usually uint8 (N, C, H, W).

        Returns:
            Floats of the same shape; images are in [-1, 1] before the augmentation.
        """
        everything = slice(0, len(images))
        x = self.to_float(images, self.like.dtype)
        if self.hflip:
            x = mirror(x, self._rows("flips", Purpose.FLIP, everything))
        if self.alpha < 1:
            x = fade(x, self.alpha)
        return self.augmented(x, self._bits(Purpose.AUGMENT_REAL, everything))

    def augmented(self, x: Tensor, bits: Tensor | None) -> Tensor:
        """Augment images for D, real or generated ones (N, C, H, W) in [-1, 1], by random bits (N, NUMBERS)."""
        return x if bits is None else augment(x, self.augmentations, bits)
