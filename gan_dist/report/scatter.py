"""Scatter plots of generated points, for the data sets "ring" and "grid"."""

from __future__ import annotations

import numpy as np
from torch import Tensor


def scatter_picture(points: Tensor, centres: Tensor) -> np.ndarray:
    """Draw generated points over circles at the centres of the modes.

    Args:
        points: (N, 2), on the CPU.
        centres: centres of the modes (K, 2), on the CPU.

    Returns:
        A picture uint8 (height, width, 3).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.scatter(centres[:, 0], centres[:, 1], s=300, facecolors="none", edgecolors="tab:orange", linewidths=0.8)
    axes.scatter(points[:, 0], points[:, 1], s=2, alpha=0.4, linewidths=0)
    reach = 1.3 * centres.abs().max().item()
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()
