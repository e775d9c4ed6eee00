"""The endless stream of training images, a function of (seed, images seen)."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from gan_dist.data.in_memory import Images, ImageTensor
from gan_dist.rng import BLOCK, Purpose, permuted


class GlobalBatches(Sampler[range]):
    """The numbers of the images of each global batch, from image number `start` of the run on, without end.

    A range costs nothing to cut: each process takes its slice, and only the blocks it lies in are looked up.
    """

    drop_last = True  # asked for by Accelerate's sharding; every batch here is full

    def __init__(self, batch_size: int, start: int) -> None:
        self.batch_size = batch_size
        self.start = start

    def __iter__(self) -> Iterator[range]:
        first = self.start
        while True:
            yield range(first, first + self.batch_size)
            first += self.batch_size


class KeyedStream(Dataset):
    """A data set in the order of training: image number a of a run is in epoch a div n at place a mod n of its order.

    Every image is shown once an epoch, whatever the batch size; batches run across the ends of epochs.
    """

    def __init__(self, dataset: Images, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        self._block: tuple[int, int, np.ndarray] = (0, 0, np.empty(0, dtype=np.int64))  # epoch, first place, images

    def indices(self, numbers: range) -> list[int]:
        """Which images of the data set have these numbers in the run.

        The order is looked up a block at a time, which costs little more than a few places of it.
        """
        found, n, number = [], len(self.dataset), numbers.start
        while number < numbers.stop:
            epoch, place = divmod(number, n)
            known, first, images = self._block
            if epoch != known or not first <= place < first + len(images):
                first = place - place % BLOCK
                places = np.arange(first, min(first + BLOCK, n))
                images = permuted(self.seed, Purpose.ORDER, epoch, places, n)
                self._block = (epoch, first, images)
            part = images[place - first : place - first + numbers.stop - number]
            found += part.tolist()
            number += len(part)
        return found

    def __getitems__(self, numbers: range) -> tuple[Tensor, Tensor]:
        """A whole batch, as DataLoader's fetcher asks for it: uint8 (N, C, H, W), int64 (N,)."""
        return self.dataset.__getitems__(self.indices(numbers))


def _as_fetched(batch: Any) -> Any:
    return batch  # `__getitems__` returns whole batches already


def _quiet(_: int) -> None:
    """In a worker: its errors are raised where its batches go; its helper threads would print those of a lost peer."""
    sys.excepthook = lambda *_: None


def make_loader(dataset: Images, batch_size: int, seed: int, start: int, workers: int) -> DataLoader:
    """Global batches (uint8 (N, C, H, W), int64 (N,)); Accelerate gives each process its slice of them."""
    in_memory = isinstance(dataset, ImageTensor)
    return DataLoader(
        KeyedStream(dataset, seed),
        batch_sampler=GlobalBatches(batch_size, start),  # type: ignore[arg-type]
        collate_fn=_as_fetched,
        num_workers=0 if in_memory else workers,
        worker_init_fn=_quiet,
        pin_memory=torch.cuda.is_available() and not in_memory,
    )


def batches_of(loader: DataLoader) -> Generator[tuple[Tensor, Tensor]]:
    """A loader's batches; the death of a worker is one RuntimeError, whatever it was doing."""
    try:
        yield from loader
    except (ConnectionError, EOFError) as error:  # it died while it handed over a batch
        time.sleep(5)  # torch raises its error here, when the signal of the death arrives
        raise RuntimeError("DataLoader worker lost") from error
