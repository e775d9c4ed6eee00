"""gan_dist: train generative adversarial networks on one GPU, on many GPUs, and on SLURM clusters."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gan_dist.api import Run, evaluate, load_generator, open_run, train

__version__ = "0.1.0"
__all__ = ["Run", "evaluate", "load_generator", "open_run", "train"]


def __getattr__(name: str) -> Any:
    """Import the functions of `gan_dist.api` when they are used: they import torch, which takes seconds."""
    if name in __all__:
        return getattr(importlib.import_module("gan_dist.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
