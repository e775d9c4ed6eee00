"""Leave a process as it was found: what a training or an evaluation changes in the process of a user's program."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from gan_dist.kernels.memory import give_back_memory
from gan_dist.kernels.switches import WORKSPACE, torch_defaults
from gan_dist.parallel import rendezvous
from gan_dist.parallel.accelerate_adapter import own_state
from gan_dist.quiet import quiet
from gan_dist.report.log import log_as_before
from gan_dist.rng import global_generators


@contextmanager
def as_found() -> Iterator[None]:
    """A context after which the process is as before; `gan_dist.train` lists what can't be put back.

    Inside it the process is as at the start of a program: torch has its defaults, and Accelerate no state.
    """
    gc.collect()  # what a training that has failed may still hold
    environment, path, hook, stop = dict(os.environ), [*sys.path], sys.excepthook, sys.exit
    inductor: Any = importlib.import_module("torch._inductor.config")
    compilers = inductor.compile_threads
    try:
        with log_as_before(), quiet(), torch_defaults(), own_state(), global_generators():
            try:
                yield
            finally:
                rendezvous.leave()
    finally:
        if torch.cuda.is_initialized() and WORKSPACE in os.environ:
            environment[WORKSPACE] = os.environ[WORKSPACE]  # CUDA has read it, and a later run must know that
        os.environ.clear()
        os.environ.update(environment)
        sys.path[:] = path
        sys.excepthook, sys.exit = hook, stop  # W&B replaces both
        inductor.compile_threads = compilers
        _free()


def _free() -> None:
    """Give the memory of a training back, and end the compilers that torch keeps for the next one."""
    gc.collect()  # networks and callbacks refer to each other
    give_back_memory()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if "torch._inductor.async_compile" in sys.modules:
        compilers: Any = importlib.import_module("torch._inductor.async_compile")
        compilers.shutdown_compile_workers()
