"""gan_dist: train generative adversarial networks on one GPU, on many GPUs, and on SLURM clusters."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from gan_dist.game.losses import Loss as Loss
    from gan_dist.register import register_augmentation as register_augmentation
    from gan_dist.register import register_callback as register_callback
    from gan_dist.register import register_dataset as register_dataset
    from gan_dist.register import register_discriminator as register_discriminator
    from gan_dist.register import register_extractor as register_extractor
    from gan_dist.register import register_generator as register_generator
    from gan_dist.register import register_loss as register_loss
    from gan_dist.register import register_metric as register_metric
    from gan_dist.register import register_penalty as register_penalty
    from gan_dist.register import register_tracker as register_tracker

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import what is used only when it is used, because that imports torch, which takes seconds."""
    if name == "Loss":
        return importlib.import_module("gan_dist.game.losses").Loss
    if name.startswith("register_"):
        return getattr(importlib.import_module("gan_dist.register"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


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
