"""Adversarial losses: logits -> loss of each sample (N,). Pure functions of tensors.

With the textbook's D(x) = sigmoid(logit), log D = -softplus(-logit) and log(1 - D) = -softplus(logit): the logits form
never takes the logarithm of zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import relu, softplus


def cross_entropy(real: Tensor, fake: Tensor, smoothing: float = 0.0) -> Tensor:
    """D's loss, -t log D(x) - (1 - t) log(1 - D(x)) - log(1 - D(G(z))), with the target t = 1 - smoothing.

    Goodfellow et al. 2014, equation 1; one-sided label smoothing: Salimans et al. 2016, section 3.4.
    """
    return softplus(-real) + smoothing * real + softplus(fake)


def minimax(fake: Tensor) -> Tensor:
    """G's loss log(1 - D(G(z))) (Goodfellow et al. 2014, equation 1). Its gradient vanishes where D is sure."""
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
    """The critic's loss D(G(z)) - D(x): minus its estimate of the distance (Arjovsky et al. 2017, equation 3)."""
    return fake - real


def linear(fake: Tensor) -> Tensor:
    """G's loss -D(G(z)), of Wasserstein (Arjovsky et al. 2017, Algorithm 1) and of hinge GANs."""
    return -fake


def relativistic_d(real: Tensor, fake: Tensor) -> Tensor:
    """D's loss -log sigmoid(D(x) - D(G(z))), each real sample against a generated one.

    Jolicoeur-Martineau 2019, "The relativistic discriminator", section 4.1 (RpGAN); Huang et al. 2024, equation 2.
    """
    return softplus(fake - real)


def relativistic_g(fake: Tensor, real: Tensor) -> Tensor:
    """G's loss -log sigmoid(D(G(z)) - D(x)): the same pairs, the other way round."""
    return softplus(real - fake)


class Loss(NamedTuple):
    """The two sides of a game, each (N,).

    Attributes:
        D: `D(real, fake)`, and `D(real, fake, smoothing)` if it `has_target`.
        G: `G(fake)`, or `G(fake, real)` if `paired`.
        has_target: D's real logits or probabilities are drawn to a target, which may be smoothed.
        paired: sample i of the batch is compared with real sample i; G is then asked for the real samples' labels.
        critic: minus D's loss is an estimate of a distance.
    """

    D: Callable[..., Tensor]
    G: Callable[..., Tensor]
    has_target: bool = False
    paired: bool = False
    critic: bool = False


LOSSES = {
    "non_saturating": Loss(cross_entropy, non_saturating, has_target=True),
    "minimax": Loss(cross_entropy, minimax, has_target=True),
    "least_squares": Loss(least_squares_d, least_squares_g, has_target=True),
    "hinge": Loss(hinge, linear),
    "wasserstein": Loss(wasserstein, linear, critic=True),
    "relativistic": Loss(relativistic_d, relativistic_g, paired=True),
}
