"""The only file that sets torch's switches for TF32 and for determinism (the same bits in every repetition).

torch has an older and a newer interface for TF32. torch raises an error if a program sets the newer one and then reads
the older one. This file sets the older one, after which both can be read: `torch.backends.cudnn.flags` reads the older
one, and torch.compile reads the newer one. The user's own settings of either interface are put back.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch

T = TypeVar("T")

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # the environment variable that cuBLAS reads once, when it starts
LATE = f"CUDA was started without {WORKSPACE}=:4096:8 in the environment"

# The switches of the newer interface: products and convolutions on a GPU and, by oneDNN, on a CPU.
_backends: Any = torch.backends  # mypy does not know all switches
_NEWER = (
    _backends.cuda.matmul,
    _backends.cudnn.conv,
    _backends.cudnn.rnn,
    _backends.mkldnn.matmul,
    _backends.mkldnn.conv,
)


@contextmanager
def numerics(precision: str, exact: bool) -> Iterator[None]:
    """A context that sets torch's switches for a run.

    cuDNN never searches for the fastest algorithm, because after a restart the search could choose another one, which
    gives other bits. cuBLAS is made deterministic elsewhere, because it must be done before CUDA starts: see
    `reserve_workspace`.

    Args:
        precision: "fp64", "fp32", "tf32", "bf16" or "fp16". Only "tf32" computes fp32 matrix products and convolutions
            in TF32; with all others they are IEEE fp32.
        exact: let cuDNN use deterministic algorithms only.
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
def deterministic() -> Iterator[None]:
    """A context in which torch.compile generates deterministic code, if the run is exact; see `numerics`.

    Otherwise it would add numbers in a random order on a GPU, and choose kernels by timing them.
    """
    exact = torch.backends.cudnn.deterministic
    memory: Any = torch.utils.deterministic  # mypy does not know its switch
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(exact, warn_only=True)
    memory.fill_uninitialized_memory = False  # filling costs time, and no kernel here reads what was not written
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = filled


@contextmanager
def ieee_fp32() -> Iterator[None]:
    """A context, or a decorator, that computes fp32 as IEEE fp32, never as TF32, whatever the run's precision is."""
    with _tf32(allowed=False):
        yield


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """A context like `ieee_fp32` that also switches autocast off on the device: nothing runs in bf16 or fp16."""
    kind = device.type
    autocast = torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
    with autocast, ieee_fp32():
        yield


def reserve_workspace() -> bool:
    """Make cuBLAS deterministic, which costs 32 MiB of GPU memory. Call this function before CUDA starts.

    Returns:
        False if CUDA had started without it, so that the same bits are not promised.
    """
    late = WORKSPACE not in os.environ and torch.cuda.is_initialized()
    os.environ.setdefault(WORKSPACE, ":4096:8")
    return not late


@contextmanager
def torch_defaults() -> Iterator[None]:
    """A context with the defaults of a fresh torch for new tensors and for algorithms, and with gradients.

    What the user has set for the program is put back after it, and so are the global generators of random numbers.
    """
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    strict, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(gpus), torch.inference_mode(False), torch.enable_grad():
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
        torch.use_deterministic_algorithms(False)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            torch.set_default_device(None if device.type == "cpu" else device)
            torch.use_deterministic_algorithms(strict, warn_only=warn_only)


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    products, convolutions = _older(torch.get_float32_matmul_precision), _older(lambda: cudnn.allow_tf32)
    before = [switch.fp32_precision for switch in _NEWER]
    with warnings.catch_warnings():
        # torch warns that it will remove the older interface in a later version.
        warnings.filterwarnings("ignore", message="Please use the new API settings to control TF32")
        matmul.allow_tf32, cudnn.allow_tf32 = allowed, allowed
    for switch in _NEWER[3:]:
        switch.fp32_precision = "ieee"  # the CPU
    try:
        yield
    finally:
        # The older interface changes switches of the newer one, which therefore come last.
        if products is not None:
            torch.set_float32_matmul_precision(products)
        if convolutions is not None:
            cudnn.allow_tf32 = convolutions
        for switch, value in zip(_NEWER, before):
            switch.fp32_precision = value


def _older(read: Callable[[], T]) -> T | None:
    """Return a setting of the older interface; None if the user has set it by the newer one, so that it is an error."""
    try:
        return read()
    except RuntimeError:
        return None
