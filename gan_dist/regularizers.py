"""Regularizers of D: -> (N,). Pure functions of tensors, differentiable themselves."""

from __future__ import annotations

import torch
from torch import Tensor


def squared_gradient_norm(logits: Tensor, x: Tensor) -> Tensor:
    """|grad_x D(x)|^2 of each sample, to be differentiated again: (N,).

    With x real this times gamma/2 is the R1 penalty (Mescheder et al. 2018, "Which training methods for GANs do
    actually converge?", equation 9).

    Args:
        logits: D(x), (N,), with x in its graph.
        x: (N, …), requires grad.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    return gradient.square().flatten(1).sum(1)
