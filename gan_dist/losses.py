"""Adversarial losses: logits -> loss of each sample (N,). Pure functions of tensors.

With the textbook's D(x) = sigmoid(logit), log D = -softplus(-logit) and log(1 - D) = -softplus(logit): the logits form
never takes the logarithm of zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import softplus


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


class Loss(NamedTuple):
    """The two sides of a game: `D(real, fake, smoothing)` and `G(fake)`, each (N,)."""

    D: Callable[[Tensor, Tensor, float], Tensor]
    G: Callable[[Tensor], Tensor]


LOSSES = {
    "non_saturating": Loss(cross_entropy, non_saturating),
    "minimax": Loss(cross_entropy, minimax),
}
