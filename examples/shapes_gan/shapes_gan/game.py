"""A loss and a penalty."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import relu

from gan_dist import Loss, register_loss, register_penalty


@register_loss("wide_hinge")
def wide_hinge(*, width: float = 1.0) -> Loss:
    """The hinge loss with a margin of another width than 1; the setting is `loss.args.width`."""

    def of_D(real: Tensor, fake: Tensor) -> Tensor:
        return relu(width - real) + relu(width + fake)

    def of_G(fake: Tensor) -> Tensor:
        return -fake

    return Loss(of_D, of_G)


@register_penalty("consistency")
def consistency(D: Any, x_real: Tensor, x_fake: Tensor, y: Tensor | None, u: Tensor, *, weight: float = 1.0) -> Tensor:
    """D must say the same of an image and of its mirror image (Zhang et al. 2020, "Consistency regularization", eq. 3).

    Returns (N,). The setting is `loss.penalties.consistency.weight`.
    """
    return weight * (D(x_real, y) - D(x_real.flip(3), y)).square()
