"""The game that G and D play: which loss, which penalties, and how often D moves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gan_dist.game.losses import Loss


@dataclass(frozen=True)
class Penalties:
    """What is added to D's loss; a weight of 0 leaves a penalty out.

    Attributes:
        drift: weight of the squared logits of real images (Karras et al. 2018, appendix A.1).
        r1_gamma, r2_gamma: weights of half the squared gradient norms at real and at generated images.
        gamma_scale: images seen -> a factor of both gammas.
        gradient_penalty: weight of WGAN-GP's penalty (Gulrajani et al. 2017, equation 3).
        interval: all but drift are applied in every `interval`-th D step, that many times stronger: lazy
            regularization (Karras et al. 2020, "Analyzing and improving the image quality of StyleGAN", section 3.1).
        clip_weights: after its step, D's weights are clamped to this size.
    """

    drift: float
    r1_gamma: float
    r2_gamma: float
    gamma_scale: Callable[[int], float]
    gradient_penalty: float
    interval: int
    clip_weights: float


@dataclass(frozen=True)
class Game:
    """What both networks optimise.

    Attributes:
        n_critic: D steps for each G step.
        label_smoothing: D's target for real images is 1 minus this; only for a loss that has a target.
        d_half: halve D's loss.
    """

    loss: Loss
    penalties: Penalties
    n_critic: int = 1
    label_smoothing: float = 0.0
    d_half: bool = False

    @property
    def same_labels(self) -> bool:
        """Real and generated images of a pair have one label, as the loss compares them or a penalty mixes them."""
        return self.loss.paired or self.penalties.gradient_penalty > 0
