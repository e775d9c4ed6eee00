"""All that this package knows of Accelerate beyond its public interface, in one place.

`tests/test_accelerate_versions.py` checks these functions with the lowest version that pyproject.toml allows and with
the installed one.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import accelerate.optimizer
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn


def skip_lookups() -> None:
    """Let an optimizer's step be quick.

    In each step of each optimizer, Accelerate asks whether the package lomo is installed, and looks for it in all
    folders that Python imports from, which takes 0.3 ms. The answer is kept.
    """
    lookup = accelerate.optimizer.is_lomo_available
    if not hasattr(lookup, "cache_info"):
        accelerate.optimizer.is_lomo_available = functools.cache(lookup)


def allow_shared_gpu() -> None:
    """Let DistributedDataParallel of every process be on the process's own device, also where several share one GPU."""
    os.environ["ACCELERATE_BYPASS_DEVICE_MAP"] = "true"


def shares_gpu() -> bool:
    """Whether `allow_shared_gpu`, or the user, has said so."""
    return os.environ.get("ACCELERATE_BYPASS_DEVICE_MAP") == "true"


def forget_model(accelerator: Accelerator, model: nn.Module) -> None:
    """Undo `prepare_model`, so that the module inside the wrapper can be prepared again."""
    module = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    accelerator._models.remove(module)
    # A module that is marked as prepared would not get autocast again: it would run in the precision of its weights.
    vars(module).pop("_is_accelerate_prepared", None)


def forget_loaders(accelerator: Accelerator) -> None:
    """Let data loaders that have ended free their images, which Accelerate would keep."""
    accelerator._dataloaders.clear()


def forward_without_autocast(module: nn.Module) -> Callable[..., Any]:
    """The forward function that a module had before Accelerate put autocast around it."""
    return getattr(module, "_original_forward", module.forward)


def forget_state() -> None:
    """Let this process have another device or precision than the run before had."""
    AcceleratorState._reset_state(reset_partial_state=True)
