"""Adversarial losses: functions from logits (N,) to the loss of each sample (N,).

The arguments `real` and `fake` are D's logits of real and of generated images. The papers of the cross-entropy losses
write D(x) for the probability sigmoid(logit). Then log D = -softplus(-logit) and log(1 - D) = -softplus(logit). The
functions here use softplus because it never computes the logarithm of zero. In the other losses D(x) is the logit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn.functional import relu, softplus

from gan_dist.parts import Table


def cross_entropy(real: Tensor, fake: Tensor, smoothing: float = 0.0) -> Tensor:
    """D's loss -t log D(x) - (1 - t) log(1 - D(x)) - log(1 - D(G(z))), with the target t = 1 - smoothing.

    Without smoothing this is equation 1 of Goodfellow et al. 2014. One-sided label smoothing (`smoothing` in [0, 1)) is
    from Salimans et al. 2016, section 3.4.
    """
    return softplus(-real) + smoothing * real + softplus(fake)


def minimax(fake: Tensor) -> Tensor:
    """G's loss log(1 - D(G(z))) (Goodfellow et al. 2014, equation 1).

    Its gradient is almost zero when D is sure that the image is generated; `non_saturating` avoids this.
    """
    return -softplus(fake)


def non_saturating(fake: Tensor) -> Tensor:
    """G's loss -log D(G(z)) (Goodfellow et al. 2014, section 3)."""
    return softplus(-fake)


def least_squares_d(real: Tensor, fake: Tensor, smoothing: float = 0.0) -> Tensor:
    """D's loss ((D(x) - b)^2 + (D(G(z)) - a)^2) / 2 with a = 0 and b = 1 - smoothing (Mao et al. 2017, equation 9)."""
    return 0.5 * ((real - (1 - smoothing)).square() + fake.square())


def least_squares_g(fake: Tensor) -> Tensor:
    """G's loss (D(G(z)) - c)^2 / 2 with c = 1 (Mao et al. 2017, equation 9)."""
    return 0.5 * (fake - 1).square()


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """D's loss max(0, 1 - D(x)) + max(0, 1 + D(G(z))) (Miyato et al. 2018, equation 16)."""
    return relu(1 - real) + relu(1 + fake)


def wasserstein(real: Tensor, fake: Tensor) -> Tensor:
    """The critic's loss D(G(z)) - D(x) (Arjovsky et al. 2017, equation 3).

    Its mean, times -1, is the critic's estimate of the Wasserstein distance between real and generated images.
    """
    return fake - real


def linear(fake: Tensor) -> Tensor:
    """G's loss -D(G(z)) of Wasserstein GANs (Arjovsky et al. 2017, Algorithm 1) and of GANs with the hinge loss."""
    return -fake


def relativistic_d(real: Tensor, fake: Tensor) -> Tensor:
    """D's loss -log sigmoid(D(x) - D(G(z))): real sample i is compared with generated sample i.

    Jolicoeur-Martineau 2019, "The relativistic discriminator", section 4.1 (RpGAN); Huang et al. 2024, equation 2.
    """
    return softplus(fake - real)


def relativistic_g(fake: Tensor, real: Tensor) -> Tensor:
    """G's loss -log sigmoid(D(G(z)) - D(x)): `relativistic_d` with real and generated samples exchanged."""
    return softplus(real - fake)


class Loss(NamedTuple):
    """The loss of D and the loss of G in one adversarial game. Both map logits (N,) to the loss of each sample (N,).

    Attributes:
        D: called as `D(real, fake)`, or as `D(real, fake, smoothing)` if `has_target`.
        G: called as `G(fake)`, or as `G(fake, real)` if `paired`.
        has_target: D's loss has a target for real images, to which label smoothing can be applied.
        paired: the loss compares generated sample i with real sample i. Both then get the label of the real sample.
        critic: D is a critic: its loss, times -1, estimates a distance between real and generated images.
    """

    D: Callable[..., Tensor]
    G: Callable[..., Tensor]
    has_target: bool = False
    paired: bool = False
    critic: bool = False


# The valid values of `loss.name`. A user's loss is a function of keyword-only arguments that returns a `Loss`.
_OWN = {
    "non_saturating": Loss(cross_entropy, non_saturating, has_target=True),
    "minimax": Loss(cross_entropy, minimax, has_target=True),
    "least_squares": Loss(least_squares_d, least_squares_g, has_target=True),
    "hinge": Loss(hinge, linear),
    "wasserstein": Loss(wasserstein, linear, critic=True),
    "relativistic": Loss(relativistic_d, relativistic_g, paired=True),
}
LOSSES = Table("loss", _OWN)


def make_loss(name: str, args: Mapping[str, Any]) -> Loss:
    """Return a loss.

    Args:
        name: a key of `LOSSES`.
        args: the arguments of the function that makes a user's loss; this package's own losses take none.
    """
    part = LOSSES[name]
    return part if isinstance(part, Loss) else part(**args)
