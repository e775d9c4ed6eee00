"""The game between G and D: the loss, the penalties, and the number of D steps per G step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from gan_dist.game.losses import Loss


@dataclass(frozen=True)
class Penalties:
    """The penalties that are added to D's loss, and weight clipping. A value of 0 turns the penalty off.

    Attributes:
        drift: weight of the penalty D(x)^2 on real images (Karras et al. 2018, appendix A.1).
        r1_gamma: gamma of the R1 penalty, gamma/2 |grad D(x)|^2 on real images (Mescheder et al. 2018, equation 9).
        r2_gamma: gamma of the R2 penalty, which is the same on generated images (equation 10).
        gamma_scale: a function from nimg, the number of images seen, to a factor of both gammas.
        gradient_penalty: weight of WGAN-GP's penalty (Gulrajani et al. 2017, equation 3).
        interval: lazy regularization interval: R1, R2, WGAN-GP's and users' penalties are computed only in every
            `interval`-th D step, and multiplied by `interval` there (Karras et al. 2020, "Analyzing and improving the
            image quality of StyleGAN", section 3.1).
        clip_weights: after each D step, D's weights are clamped to [-clip_weights, clip_weights].
        others: users' penalties by name; see `gan_dist.game.regularizers.PENALTIES`.
    """

    drift: float
    r1_gamma: float
    r2_gamma: float
    gamma_scale: Callable[[int], float]
    gradient_penalty: float
    interval: int
    clip_weights: float
    others: Mapping[str, Callable[..., Tensor]] = field(default_factory=dict)

    @property
    def pairs(self) -> bool:
        """A penalty mixes real image i with generated image i, or may do so."""
        return self.gradient_penalty > 0 or bool(self.others)


@dataclass(frozen=True)
class Game:
    """The losses of D and G.

    Attributes:
        loss: the adversarial losses of D and G.
        penalties: the penalties on D.
        n_critic: number of D steps per G step.
        label_smoothing: D's target for real images is 1 minus this, in [0, 1). Losses without a target ignore it.
        d_half: multiply D's loss, without penalties, by 1/2.
    """

    loss: Loss
    penalties: Penalties
    n_critic: int = 1
    label_smoothing: float = 0.0
    d_half: bool = False

    @property
    def same_labels(self) -> bool:
        """Generated image i gets the label of real image i, because the loss compares or a penalty mixes the two."""
        return self.loss.paired or self.penalties.pairs
