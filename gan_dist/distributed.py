"""Processes and devices: the only file that knows Accelerate. Everything else is handed a `Distributed`."""

from __future__ import annotations

import signal
from contextlib import AbstractContextManager, nullcontext
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from torch import Tensor, nn
from torch.utils.data import DataLoader

_PRECISION = {"fp32": "no", "bf16": "bf16"}


class Distributed:
    """This process's place among all, and what they do together.

    Attributes:
        device: where this process computes.
        rank, world_size: this process's number, and how many there are.
        is_main: True in the one process that writes files and talks to trackers.
    """

    def __init__(self, precision: str = "fp32", cpu: bool = False) -> None:
        self._accelerator = Accelerator(
            cpu=cpu,
            mixed_precision=_PRECISION[precision],
            # Global batches, cut into equal slices: process r of p gets the r-th.
            dataloader_config=DataLoaderConfiguration(split_batches=True, even_batches=False, non_blocking=True),
            rng_types=[],  # nothing draws from global generators
        )
        self.device: torch.device = self._accelerator.device
        self.rank: int = self._accelerator.process_index
        self.world_size: int = self._accelerator.num_processes
        self.is_main: bool = self._accelerator.is_main_process

    def prepare_model(self, module: nn.Module) -> nn.Module:
        """Move a module to the device, run its forward in the run's precision, and wrap it for several processes."""
        return self._accelerator.prepare_model(module)

    def prepare_optimizer(self, optimizer: torch.optim.Optimizer) -> Any:
        """An optimizer that steps in the run's precision; the original is its attribute `optimizer`."""
        return self._accelerator.prepare_optimizer(optimizer)

    def prepare_loader(self, loader: DataLoader) -> DataLoader:
        """A loader of global batches to one of this process's slices, on the device."""
        return self._accelerator.prepare_data_loader(loader)

    def micro_batch(self, model: nn.Module, last: bool) -> AbstractContextManager:
        """Around forward and backward of one micro-batch: only the last one averages gradients over processes."""
        return nullcontext() if last else self._accelerator.no_sync(model)

    def backward(self, loss: Tensor) -> None:
        """Backward pass of a scalar loss in the run's precision."""
        self._accelerator.backward(loss)

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of a tensor over all processes."""
        return self._accelerator.reduce(tensor, "mean")

    def gather_shares(self, tensor: Tensor, count: int) -> Tensor:
        """Join what each process made of its `share` of `count` samples, in the samples' order: (count, …)."""
        sizes = [count * (r + 1) // self.world_size - count * r // self.world_size for r in range(self.world_size)]
        padded = torch.cat([tensor, tensor.new_zeros(max(sizes) - len(tensor), *tensor.shape[1:])])
        parts = self._accelerator.gather(padded.to(self.device)).to(tensor.device).split(max(sizes))
        return torch.cat([part[:size] for part, size in zip(parts, sizes)])

    def barrier(self) -> None:
        """Wait for all processes."""
        self._accelerator.wait_for_everyone()

    def share(self, first: int, count: int) -> tuple[int, int]:
        """This process's slice (first, count) of `count` consecutive samples, as even as it goes."""
        start, stop = (count * r // self.world_size for r in (self.rank, self.rank + 1))
        return first + start, stop - start


class StopSignals:
    """While it is entered, the first SIGINT or SIGTERM asks for a stop; a second one ends the program at once."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: FrameType | None) -> None:
        self.received = signal.Signals(number)
        for other, handler in self._before.items():
            signal.signal(other, handler)
