"""gan_dist: train generative adversarial networks on one GPU, on many GPUs, and on SLURM clusters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

__version__ = "0.1.0"


def load_generator(run_dir: str | Path, checkpoint: str = "latest", device: str = "cpu") -> nn.Module:
    """Load G_ema, the exponential moving average of the generator, from a checkpoint of a run.

    The returned module is called as `G(z)`, or as `G(z, y)` if the run is conditional. It takes latents
    z (N, G.z_dim) from N(0, 1) and labels y (N,) int64 in 0 … G.num_classes - 1. It returns float images
    (N, *G.image_shape) in [-1, 1]. It is in eval mode, and its weights require no gradient. They are fp32, or fp64 if
    the run's precision is fp64.

    Args:
        run_dir: a run directory that `train.py` has written. No file outside it is read.
        checkpoint: "latest" for the newest checkpoint that is not damaged, "best" for the one with the lowest FID, or
            the name of a directory in `run_dir/checkpoints`.
        device: where to put the module, for example "cuda".

    Raises:
        gan_dist.errors.UserError: there is no such run or checkpoint, or its files are damaged or do not belong
            together; or `device` cannot be used (its subclass ConfigError).
    """
    # torch is imported in this function, because `import gan_dist` would otherwise take seconds.
    from gan_dist.wiring.networks import load_generator as load

    return load(Path(run_dir), checkpoint, device)
