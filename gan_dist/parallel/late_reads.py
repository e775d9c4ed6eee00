"""Read the value of a tensor some iterations later, so that the host does not wait for the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Pinned memory that was used before, by shape and dtype. To allocate it takes long.
_free: dict[tuple[torch.Size, torch.dtype], list[Tensor]] = {}


def read_later(tensor: Tensor, work: Any = None) -> Callable[[], Tensor]:
    """Start to copy a tensor to the host; neither the host nor the device waits for the copy.

    Args:
        tensor: the tensor. On a CPU it must not be changed until its value is read.
        work: an asynchronous collective that computes the tensor; None if the tensor is computed already.

    Returns:
        A function that waits for the value and returns it, on the CPU. Call it once.
    """
    if tensor.device.type != "cuda":

        def from_host() -> Tensor:
            if work:
                work.wait()
            return tensor

        return from_host
    if work:
        work.wait()  # only the GPU's stream waits for the collective, the host does not
    free = _free.setdefault((tensor.shape, tensor.dtype), [])
    copy = free.pop() if free else torch.empty_like(tensor, device="cpu", pin_memory=True)
    copy.copy_(tensor, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()

    def from_device() -> Tensor:
        arrived.synchronize()
        value = copy.clone()
        free.append(copy)
        return value

    return from_device
