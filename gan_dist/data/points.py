"""Toy data: points in the plane from a mixture of Gaussians, stored as "images" of shape (2, 1, 1).

These two mixtures are a common quick test for mode collapse (Srivastava et al. 2017, "VEEGAN", section 4.1).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gan_dist.rng import Purpose, below, latents, words

NUM_POINTS = 100_000
STD = {"ring": 0.02, "grid": 0.05}  # standard deviation of each Gaussian
POINTS = tuple(STD)  # names of the data sets of points


def modes(name: str) -> Tensor:
    """Return the centres of the Gaussians (K, 2): 8 on a circle of radius 2, or 25 on a square grid with spacing 2.

    Args:
        name: "ring" or "grid".
    """
    if name == "ring":
        angles = torch.arange(8) * (2 * math.pi / 8)
        return 2 * torch.stack([angles.cos(), angles.sin()], dim=1)
    places = 2.0 * torch.arange(-2, 3)
    return torch.cartesian_prod(places, places)


def make_points(name: str) -> tuple[Tensor, Tensor]:
    """Draw the data set "ring" or "grid", which is the same in every run.

    Returns:
        Points float32 (N, 2, 1, 1), and the number of the Gaussian of each point as its label, int64 (N,).
    """
    centres = modes(name)
    y = below(words(0, Purpose.POINTS_MODE, 0, NUM_POINTS, 1)[:, 0], len(centres))
    x = centres.double()[y] + STD[name] * latents(0, Purpose.POINTS, 0, NUM_POINTS, 2)
    return x.float()[:, :, None, None], y
