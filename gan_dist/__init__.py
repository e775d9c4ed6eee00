"""gan_dist: train generative adversarial networks on one GPU, on many, and on SLURM clusters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

__version__ = "0.1.0"


def load_generator(run_dir: str | Path, checkpoint: str = "latest", device: str = "cpu") -> nn.Module:
    """Load the averaged generator `G_ema` of a run, ready to sample from.

    `G(z)`, or `G(z, y)` if the run is conditional, takes latents z (N, G.z_dim) from N(0, 1) and class labels
    y (N,) int64 below `G.num_classes`, and returns float images (N, *G.image_shape) in [-1, 1].

    Args:
        run_dir: a directory made by `train.py`; nothing outside it is needed.
        checkpoint: "latest", or the name of a directory below `run_dir/checkpoints`.
        device: where to put the module, for example "cuda".

    Raises:
        gan_dist.errors.UserError: there is no such run or checkpoint, or its files don't fit together.
    """
    from gan_dist.wiring.networks import (
        load_generator as load,  # torch is imported when it is needed, not with the package
    )

    return load(Path(run_dir), checkpoint, device)
