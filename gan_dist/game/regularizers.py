"""Regularizers of D: penalties -> (N,), pure functions, differentiable themselves; and bounds on its weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gan_dist.kernels.gradients import with_regard_to


def squared_gradient_norms(logits: Tensor, *xs: Tensor) -> list[Tensor]:
    """|grad_x D(x)|^2 of each sample of each x, to be differentiated again: (N,) each.

    Times gamma/2 this is the R1 penalty with x real and the R2 penalty with x generated (Mescheder et al. 2018, "Which
    training methods for GANs do actually converge?", equations 9 and 10).

    Args:
        logits: D of all of them, (N,) or more, with the xs in its graph: one backward pass serves them all.
        xs: (N, …), require grad.
    """
    with with_regard_to(xs):
        gradients = torch.autograd.grad(logits.sum(), xs, create_graph=True)
    return [gradient.square().flatten(1).sum(1) for gradient in gradients]


def lipschitz_penalty(logits: Tensor, x: Tensor) -> Tensor:
    """(|grad_x D(x)| - 1)^2 of each sample, with x as `interpolate` makes it (Gulrajani et al. 2017, equation 3): (N,).

    Arguments as for `squared_gradient_norms`.
    """
    (norm,) = squared_gradient_norms(logits, x)
    return (norm.clamp(min=1e-12).sqrt() - 1).square()  # the root's slope at 0 is infinite


def interpolate(x_real: Tensor, x_fake: Tensor, u: Tensor) -> Tensor:
    """u x_real + (1 - u) x_fake, a point between the two of each pair: (N, …), with u (N,) in [0, 1)."""
    u = u.view(-1, *(1,) * (x_real.ndim - 1))
    return u * x_real + (1 - u) * x_fake


@torch.no_grad()
def clip_weights(parameters: Iterable[Tensor], limit: float) -> None:
    """Clamp to [-limit, limit], in place (Arjovsky et al. 2017, Algorithm 1)."""
    for parameter in parameters:
        parameter.clamp_(-limit, limit)


@torch.no_grad()
def iterate_spectral_norms(D: nn.Module) -> None:
    """One power iteration for the largest singular value of each spectrally normalised weight.

    Once a step of D (Miyato et al. 2018, Algorithm 1), not once a forward pass, so that micro-batches change nothing.
    """
    for module in D.modules():
        if isinstance(module, parametrize.ParametrizationList):
            module.train()
            module()
            module.eval()
