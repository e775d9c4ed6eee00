"""gan_dist: train generative adversarial networks on one GPU, on many GPUs, and on SLURM clusters."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gan_dist.api import Run, evaluate, load_generator, open_run, train
    from gan_dist.game.losses import Loss
    from gan_dist.register import (
        register_augmentation,
        register_callback,
        register_dataset,
        register_discriminator,
        register_extractor,
        register_generator,
        register_loss,
        register_metric,
        register_penalty,
        register_tracker,
    )

__version__ = "0.1.0"
__all__ = [
    "Loss",
    "Run",
    "evaluate",
    "load_generator",
    "open_run",
    "register_augmentation",
    "register_callback",
    "register_dataset",
    "register_discriminator",
    "register_extractor",
    "register_generator",
    "register_loss",
    "register_metric",
    "register_penalty",
    "register_tracker",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import what is used only when it is used, because that imports torch, which takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    room = "game.losses" if name == "Loss" else "register" if name.startswith("register_") else "api"
    return getattr(importlib.import_module(f"gan_dist.{room}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
