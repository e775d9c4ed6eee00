"""The endless stream of training images. It is a function of the seed and of the number of images seen so far."""

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
    """An endless sampler of global batches: it yields the range of image numbers of each batch.

    Each process takes a slice of the range, and only for this slice it looks up which images of the data set they are.

    Args:
        batch_size: global batch.
        start: number of the first image in the run.
    """

    drop_last = True  # Accelerate reads this attribute; every batch here is full anyway

    def __init__(self, batch_size: int, start: int) -> None:
        self.batch_size = batch_size
        self.start = start

    def __iter__(self) -> Iterator[range]:
        first = self.start
        while True:
            yield range(first, first + self.batch_size)
            first += self.batch_size


class KeyedStream(Dataset):
    """A data set in training order. With n images, image number a of a run is in epoch a div n, at place a mod n.

    Each epoch has its own random order. Each image occurs once per epoch. A batch may contain the end of an epoch and
    the start of the next one.

    Args:
        dataset: the images.
        seed: determines the order of every epoch.
    """

    def __init__(self, dataset: Images, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        # The places that were looked up last: epoch, first place, images of the data set.
        self._block: tuple[int, int, np.ndarray] = (0, 0, np.empty(0, dtype=np.int64))

    def indices(self, numbers: range) -> list[int]:
        """Return the indices in the data set of the images with these numbers in the run.

        The order is looked up in blocks of BLOCK places, because a block takes little more time than a few places.
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
        """Return a whole batch, as DataLoader requests it: images uint8 (N, C, H, W) and labels int64 (N,)."""
        return self.dataset.fetch(self.indices(numbers), numbers, self.seed)


def _as_fetched(batch: Any) -> Any:
    return batch  # nothing is left to collate, because `__getitems__` returns whole batches


def _quiet(_: int) -> None:
    """Let a DataLoader worker print no tracebacks.

    Its errors are raised in the main process anyway. If that has ended, the worker's helper threads would print errors.
    """
    sys.excepthook = lambda *_: None


def make_loader(dataset: Images, batch_size: int, seed: int, start: int, workers: int) -> DataLoader:
    """Make a DataLoader that yields global batches without end: images uint8 (N, C, H, W) and labels int64 (N,).

    `gan_dist.parallel.distributed.Distributed.prepare_loader` then gives each process its slice of each batch.

    Args:
        dataset: the images.
        batch_size: global batch.
        seed: determines the order of the images.
        start: number, in the run, of the first image of the stream.
        workers: number of this process's workers, which decode files; none are used if the data set is in memory.
    """
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
    """Yield a DataLoader's batches. `.close()` stops its workers.

    Raises:
        RuntimeError: a worker has died.
    """
    try:
        yield from loader
    except (ConnectionError, EOFError) as error:  # the worker died while it passed on a batch
        # While this process sleeps, the signal about the dead worker arrives, and torch raises its own RuntimeError.
        # The line below the sleep is for the case that it does not.
        time.sleep(5)
        raise RuntimeError("DataLoader worker lost") from error
