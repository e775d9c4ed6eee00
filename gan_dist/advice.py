"""Libraries describe errors in their own words; this file says what the user can do about them."""

from __future__ import annotations

import sys
import traceback

from gan_dist.errors import UserError

# What needed the memory: folder of the package -> when, and what to do. Of the folders in which an error has occurred,
# the first one here counts.
_MEMORY = {
    "metrics": "while the metrics were computed; lower metrics.batch_size or metrics.num_images",
    "data": "while the images were read; lower data.memory_gib, data.workers or data.image_size",
    "checkpoint": "while a checkpoint was copied or read; use a machine with more memory, or smaller networks",
    "report": "while results were recorded; use a machine with more memory",
}
_TRAINING = "while the networks were made or trained; lower train.micro_batch_size or the networks' widths"

# How a data worker has ended -> why, and what to do.
_WORKER = {
    "signal: Killed": "mostly because memory ran out: lower data.workers or data.memory_gib, or get more memory",
    "signal: Bus error": "/dev/shm is full: enlarge it (docker run --shm-size=8g), or lower data.workers",
    "signal: Terminated": "something outside the program has sent it SIGTERM",
    "signal": "a library has crashed in it: start again with data.workers=0 to see where",
    "": "mostly because memory ran out: lower data.workers or data.memory_gib; data.workers=0 shows other reasons",
}


def advise(error: Exception) -> Exception:
    """Turn well-known errors of libraries into a UserError that says what to do; return other errors unchanged."""
    text = str(error)
    line = " ".join(text.split())[:150] or type(error).__name__
    torch = sys.modules.get("torch")  # it is not imported here, because that takes seconds
    if torch and isinstance(error, torch.OutOfMemoryError):
        return UserError(f"the GPU's memory was full ({line}) {_MEMORY.get(_folder(error), _TRAINING)}")
    if isinstance(error, RuntimeError) and "re-initialize CUDA in forked subprocess" in text:
        return UserError(
            "CUDA was started before this process was forked, and cannot start again in it: restart the notebook, and "
            "use no GPU before notebook_launcher; or set train.device=cpu"
        )
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return UserError(
            f"train.compile=true: torch.compile failed ({line}); it needs a C++ compiler, else set it to false"
        )
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "can't allocate memory" in text):
        in_worker = text.startswith("Caught ")
        line = line if not in_worker else "in a data worker"
        return UserError(
            f"the memory was full ({line}) {_MEMORY.get('data' if in_worker else _folder(error), _TRAINING)}"
        )
    no_thread = isinstance(error, RuntimeError) and "can't start new thread" in text
    if no_thread or isinstance(error, BlockingIOError):
        return UserError(
            f"no more threads or processes can be started ({line}); raise the limit (ulimit -u, or the container's "
            "limit of pids), or lower data.workers and OMP_NUM_THREADS"
        )
    if isinstance(error, OSError) and error.filename:  # a network error is an OSError too, but has no file name
        return UserError(f"{error.filename}: {error.strerror}")
    if "Too many open files" in text:
        return UserError(f"{line}: raise the limit with ulimit -n, or lower data.workers")
    # An exception inside a worker has the worker's traceback as its message, which says more than a line here could.
    if isinstance(error, RuntimeError) and "DataLoader worker" in text and not text.startswith("Caught "):
        why = next(advice for words, advice in _WORKER.items() if words in text)
        return UserError(f"a data worker has died ({line[:80]}): {why}; then resume the run")
    return error


def _folder(error: Exception) -> str:
    """Return the folder of the package whose work has failed; "" for the networks and their training."""
    frames = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__))
    folders = {name.split(".")[1] for name in frames if name.startswith("gan_dist.") and "preprocess" not in name}
    return next((folder for folder in _MEMORY if folder in folders), "")
