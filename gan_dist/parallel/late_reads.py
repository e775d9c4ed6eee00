"""Values of tensors that are read some iterations later, so that the host does not wait for the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def read_later(tensor: Tensor, work: Any = None) -> Callable[[], Tensor]:
    """What gives the tensor's present value, or that after some collective work, on the host when it is asked for.

    Neither host nor device waits until then.
    """
    if tensor.device.type != "cuda":

        def from_host() -> Tensor:
            if work:
                work.wait()
            return tensor

        return from_host
    if work:
        work.wait()  # orders the stream, not the host
    copy = torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()

    def from_device() -> Tensor:
        arrived.synchronize()
        return copy

    return from_device
