"""The functions that use private parts of Accelerate. No other file of this package uses them.

`tests/test_accelerate_versions.py` checks these functions with the lowest version that pyproject.toml allows and with
the installed one.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import accelerate.optimizer
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import nn


def skip_lookups() -> None:
    """Make the steps of optimizers faster.

    In each step of an optimizer Accelerate searches all import folders for the package lomo, which takes 0.3 ms. After
    this call it searches only once.
    """
    lookup = accelerate.optimizer.is_lomo_available
    if not hasattr(lookup, "cache_info"):
        accelerate.optimizer.is_lomo_available = functools.cache(lookup)


def allow_shared_gpu() -> None:
    """Let several processes use one GPU.

    Without this setting Accelerate tells DistributedDataParallel to use the GPU whose number is the local rank, which
    need not exist.
    """
    os.environ["ACCELERATE_BYPASS_DEVICE_MAP"] = "true"


def shares_gpu() -> bool:
    """Tell if `allow_shared_gpu` was called, or if the user has set the environment variable that it sets."""
    return os.environ.get("ACCELERATE_BYPASS_DEVICE_MAP") == "true"


def forget_model(accelerator: Accelerator, model: nn.Module) -> None:
    """Undo `Accelerator.prepare_model`, so that the module inside the wrapper can be prepared again."""
    module = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    accelerator._models.remove(module)
    # Accelerate would not put autocast around a module with this mark again, and it would run in fp32.
    vars(module).pop("_is_accelerate_prepared", None)


def forget_loaders(accelerator: Accelerator) -> None:
    """Let Accelerate forget all DataLoaders, so that the images of loaders that have ended are freed."""
    accelerator._dataloaders.clear()


def forward_without_autocast(module: nn.Module) -> Callable[..., Any]:
    """Return the forward function that a module had before Accelerate put autocast around it."""
    return getattr(module, "_original_forward", module.forward)


def forget_state() -> None:
    """Reset Accelerate's global state, so that the next run in this process can use another device or precision."""
    AcceleratorState._reset_state(reset_partial_state=True)


@contextmanager
def own_state() -> Iterator[None]:
    """A context in which Accelerate's global state is empty; after it, the user's own Accelerator has its state again.

    All objects of these classes share the attributes of their class, so the attributes are exchanged in place.
    """
    shared = [state._shared_state for state in (AcceleratorState, PartialState, GradientState)]
    before = [dict(state) for state in shared]
    for state in shared:
        state.clear()
    try:
        yield
    finally:
        for state, content in zip(shared, before):
            state.clear()
            state.update(content)
