"""Numbers that change from step to step, kept on the device where a CUDA graph can read them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

SLOTS = 8  # buffers on the host: so many steps may be waiting for the GPU before the host waits for one of them


class Scalars(Mapping[str, Tensor]):
    """Numbers on the device, by name: each is a tensor without dimensions that keeps its address.

    A CUDA graph that is replayed computes with the numbers that these tensors hold then; a Python number would stay
    what it was when the graph was captured.

    Args:
        device: the device.
        dtypes: the dtype of each number.
    """

    def __init__(self, device: torch.device, dtypes: dict[str, torch.dtype]) -> None:
        # All numbers lie in one tensor, 8 bytes each, so that one copy brings all of them to the device.
        self._all = torch.zeros(len(dtypes), dtype=torch.int64, device=device)
        self._numbers = _views(self._all, dtypes)
        on_gpu = device.type == "cuda"
        hosts = [torch.zeros(len(dtypes), dtype=torch.int64, pin_memory=True) for _ in range(SLOTS * on_gpu)]
        self._slots = deque((host, _arrays(host, dtypes), torch.cuda.Event()) for host in hosts)
        self._here = _arrays(self._all, dtypes) if device.type == "cpu" else {}
        self._values: dict[str, float] = dict.fromkeys(dtypes, 0)

    def __getitem__(self, name: str) -> Tensor:
        return self._numbers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def write(self, values: Mapping[str, float]) -> None:
        """Set some of the numbers. Kernels that were started before this call still read the numbers of before.

        The host does not wait for the device, unless the device is SLOTS calls behind.
        """
        self._values.update(values)
        if self._here:
            for name, value in values.items():
                self._here[name][0] = value
        if self._slots:
            host, arrays, copied = self._slots[0]
            self._slots.rotate(-1)
            copied.synchronize()  # the GPU has read what the slot held
            for name, value in self._values.items():
                arrays[name][0] = value
            self._all.copy_(host, non_blocking=True)
            copied.record()


def _views(numbers: Tensor, dtypes: dict[str, torch.dtype]) -> dict[str, Tensor]:
    """View each of the int64 numbers as one number of its own dtype."""
    return {name: numbers[i : i + 1].view(dtype)[0] for i, (name, dtype) in enumerate(dtypes.items())}


def _arrays(numbers: Tensor, dtypes: dict[str, torch.dtype]) -> dict[str, Any]:
    """View int64 numbers on the CPU as arrays of numpy, in which a number is set without a call of torch."""
    return {name: numbers[i : i + 1].view(dtype).numpy() for i, (name, dtype) in enumerate(dtypes.items())}
