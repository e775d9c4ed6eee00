"""Regularizers of D: gradient penalties, weight clipping and the power iteration of spectral normalization.

The penalties are functions that return one value per sample (N,) and can be differentiated again.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gan_dist.kernels.gradients import with_regard_to
from gan_dist.parts import Table


def squared_gradient_norms(logits: Tensor, *xs: Tensor) -> list[Tensor]:
    """Compute |grad_x D(x)|^2 for each sample. The result can be differentiated again.

    Times gamma/2 this is the R1 penalty if x is real, and the R2 penalty if x is generated (Mescheder et al. 2018,
    "Which training methods for GANs do actually converge?", equations 9 and 10). One backward pass serves all xs.

    Args:
        logits: D's logits (M,), computed from all xs; logits of other images may be among them.
        xs: batches of images (N, …) that require a gradient.

    Returns:
        For each x of xs the squared gradient norms (N,).
    """
    with with_regard_to(xs):
        gradients = torch.autograd.grad(logits.sum(), xs, create_graph=True)
    return [gradient.square().flatten(1).sum(1) for gradient in gradients]


def gradient_penalty(logits: Tensor, x: Tensor) -> Tensor:
    """The gradient penalty of WGAN-GP, (|grad_x D(x)| - 1)^2 for each sample: (N,).

    Gulrajani et al. 2017, equation 3, take the x that `interpolate` returns.

    Args:
        logits: D's logits (N,) of x.
        x: images (N, …) that require a gradient.
    """
    (squared_norm,) = squared_gradient_norms(logits, x)
    return (squared_norm.clamp(min=1e-12).sqrt() - 1).square()  # the derivative of the square root at 0 is infinite


def interpolate(x_real: Tensor, x_fake: Tensor, u: Tensor) -> Tensor:
    """Compute u x_real + (1 - u) x_fake, a point between each real and generated image (Gulrajani et al. 2017).

    Args:
        x_real, x_fake: images (N, …).
        u: uniform random numbers (N,) in [0, 1), one per pair.

    Returns:
        (N, …).
    """
    u = u.view(-1, *(1,) * (x_real.ndim - 1))
    return u * x_real + (1 - u) * x_fake


# The valid keys of `loss.penalties`: penalties of users. Each is a function
# `penalty(D, x_real, x_fake, y, u, *, arguments)` that returns one value per sample, (N,), to be added to D's loss.
# D is called as `D(x, y)` and may be differentiated twice; x_real and x_fake are images (N, C, H, W) that require no
# gradient; y holds the labels of both, (N,), or is None; u holds uniform random numbers in [0, 1), (N,).
PENALTIES = Table("penalty", {})


@torch.no_grad()
def clip_weights(parameters: Iterable[Tensor], limit: float) -> None:
    """Clamp all parameters to [-limit, limit], in place (Arjovsky et al. 2017, Algorithm 1)."""
    for parameter in parameters:
        parameter.clamp_(-limit, limit)


@torch.no_grad()
def iterate_spectral_norms(D: nn.Module) -> None:
    """Make one power iteration that improves the largest singular value of each weight with spectral normalization.

    Call this once per D step (Miyato et al. 2018, Algorithm 1). torch would do it in each forward pass, and then the
    result would depend on the number of micro-batches. Frozen weights keep their singular vectors.
    """
    for module in D.modules():
        if isinstance(module, parametrize.ParametrizationList) and module.original.requires_grad:
            module.train()
            module()
            module.eval()
