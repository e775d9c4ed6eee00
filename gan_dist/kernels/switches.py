"""The one place that sets torch's switches for what "fp32" means and for repeating the same bits.

torch has two interfaces for TF32, and raises an error where the newer one is set and the older one is read. The older
one, which is used here, keeps both readable: `torch.backends.cudnn.flags` reads it, the compiler reads the newer one.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

# torch announces that the older interface will go one day.
warnings.filterwarnings("ignore", message="Please use the new API settings to control TF32")


@contextmanager
def numerics(precision: str, exact: bool) -> Iterator[None]:
    """A context in which a run of this precision computes.

    fp32 products and convolutions are IEEE fp32, but in the precision "tf32". Where `exact`, cuDNN takes only
    algorithms that give the same bits each time. It never searches for the fastest one, as a search may end differently
    after a restart. What cuBLAS needs to give the same bits is read when CUDA starts: see `reserve_workspace`.
    """
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = exact, False
    try:
        with _tf32(allowed=precision == "tf32"):
            yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before


@contextmanager
def ieee_fp32() -> Iterator[None]:
    """A context, or a decorator, in which fp32 is IEEE fp32 in a run of any precision."""
    with _tf32(allowed=False):
        yield


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """The same for a part of a network that autocast runs in half precision: there it computes in fp32."""
    kind = device.type
    autocast = torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
    with autocast, ieee_fp32():
        yield


def reserve_workspace() -> None:
    """Let cuBLAS give the same bits each time, at the cost of 32 MiB of GPU memory: to be called before CUDA starts."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32, cudnn.allow_tf32 = allowed, allowed
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
