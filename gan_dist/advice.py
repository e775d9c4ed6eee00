"""Libraries describe errors in their own words; this file says what the user can do about them."""

from __future__ import annotations

import sys

from gan_dist.errors import UserError


def advise(error: Exception) -> Exception:
    """Turn well-known errors of libraries into a UserError that says what to do; return other errors unchanged."""
    line = " ".join(str(error).split())[:150]
    torch = sys.modules.get("torch")  # it is not imported here, because that takes seconds
    if torch and isinstance(error, torch.OutOfMemoryError):
        return UserError(f"the GPU's memory is full ({line}); set train.micro_batch_size or metrics.batch_size")
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return UserError(
            f"train.compile=true: torch.compile failed ({line}); it needs a C++ compiler, else set it to false"
        )
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error)):
        return UserError(f"the memory is full ({line}); make the networks, batches or data.memory_gib smaller")
    no_thread = isinstance(error, RuntimeError) and "can't start new thread" in str(error)
    if no_thread or isinstance(error, BlockingIOError):
        return UserError(
            f"no more threads or processes can be started ({line}); raise the limit (ulimit -u, or the container's "
            "limit of pids), or lower data.workers and OMP_NUM_THREADS"
        )
    if isinstance(error, OSError) and error.filename:  # a network error is an OSError too, but has no file name
        return UserError(f"{error.filename}: {error.strerror}")
    if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
        return UserError(f"a data worker was killed ({line}); if memory was short, lower data.workers; then resume")
    return error
