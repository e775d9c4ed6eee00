"""The endless stream of training images. It is a function of the seed and of the number of images seen so far."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from gan_dist.data.folder import ImageFiles
from gan_dist.data.from_python import GivenImages
from gan_dist.data.gone import DataGoneError
from gan_dist.data.in_memory import Images, ImageTensor
from gan_dist.data.waiting import PATIENT, Patience
from gan_dist.data.workers import PREFETCH, SHARED, Workers, check_can_be_sent
from gan_dist.rng import BLOCK, Purpose, permuted


class GlobalBatches(Sampler[range]):
    """An endless sampler of global batches: it yields the range of image numbers of each batch.

    Each process takes a slice of the range, and only for this slice it looks up which images of the data set they are.

    Args:
        batch_size: global batch.
        start: number of the first image in the run.
        workers: the workers that are asked for the batches; None if no DataLoader uses this sampler.
    """

    drop_last = True  # Accelerate reads this attribute; every batch here is full anyway

    def __init__(self, batch_size: int, start: int, workers: Workers | None = None) -> None:
        self.batch_size = batch_size
        self.start = start
        self.workers = workers

    def __iter__(self) -> Iterator[range]:
        first = self.start
        while True:
            if self.workers:
                self.workers.given += 1
            yield range(first, first + self.batch_size)
            first += self.batch_size


class KeyedStream(Dataset):
    """A data set in training order. With n images, image number a of a run is in epoch a div n, at place a mod n.

    Each epoch has its own random order. Each image occurs once per epoch. A batch may contain the end of an epoch and
    the start of the next one.

    Args:
        dataset: the images.
        seed: determines the order of every epoch.
        workers: number of the DataLoader's workers.

    Attributes:
        workers: what these workers are doing.
    """

    def __init__(self, dataset: Images, seed: int, workers: int = 0) -> None:
        self.dataset = dataset
        self.seed = seed
        self.workers = Workers(workers)
        # Where stand-ins are needed, the CPU must know which images are asked for.
        there = isinstance(dataset, ImageTensor) and not dataset.unreadable
        self.device = dataset.images.device if there else torch.device("cpu")  # type: ignore[union-attr]
        # On a GPU a larger block takes the same time, and the host waits for the GPU at each lookup.
        self.block_size = BLOCK if self.device.type == "cpu" else 32 * BLOCK
        # The places that were looked up last: epoch, first place, images of the data set.
        self._block: tuple[int, int, Tensor] = (0, 0, torch.empty(0, dtype=torch.int64))

    def indices(self, numbers: range) -> Tensor:
        """Return the indices in the data set of the images with these numbers in the run: int64 (N,).

        The order is looked up where the images are, in blocks, because a block takes little more time than a few
        places.
        """
        found, n, number = [], len(self.dataset), numbers.start
        while number < numbers.stop:
            epoch, place = divmod(number, n)
            known, first, images = self._block
            if epoch != known or not first <= place < first + len(images):
                first = place - place % self.block_size
                places = torch.arange(first, min(first + self.block_size, n), device=self.device)
                images = permuted(self.seed, Purpose.ORDER, epoch, places, n)
                self._block = (epoch, first, images)
            part = images[place - first : place - first + numbers.stop - number]
            found.append(part)
            number += len(part)
        return found[0] if len(found) == 1 else torch.cat(found)

    def __getitems__(self, numbers: range) -> tuple[Tensor, Tensor]:
        """Return a whole batch, as DataLoader requests it: images uint8 (N, C, H, W) and labels int64 (N,)."""
        return self.dataset.fetch(self.indices(numbers), numbers, self.seed)


def make_loader(
    dataset: Images, batch_size: int, seed: int, start: int, workers: int, prefetch: int = PREFETCH
) -> DataLoader:
    """Make a DataLoader that yields global batches without end: images uint8 (N, C, H, W) and labels int64 (N,).

    `gan_dist.parallel.distributed.Distributed.prepare_loader` then gives each process its slice of each batch. Read the
    batches by `read_batches`.

    Args:
        dataset: the images.
        batch_size: global batch.
        seed: determines the order of the images.
        start: number, in the run, of the first image of the stream.
        workers: number of this process's workers, which decode files; none are used if the data set is in memory.
        prefetch: number of batches that each worker reads in advance.

    Raises:
        UserError: the workers cannot get the data set, which comes from Python.
    """
    in_memory = isinstance(dataset, ImageTensor)
    workers = 0 if in_memory else workers
    if workers and isinstance(dataset, GivenImages):
        check_can_be_sent(dataset)
    stream = KeyedStream(dataset, seed, workers)
    return DataLoader(
        stream,
        batch_sampler=GlobalBatches(batch_size, start, stream.workers),  # type: ignore[arg-type]
        collate_fn=stream.workers.pass_on,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        multiprocessing_context=stream.workers.context(),
        worker_init_fn=stream.workers.begin,
        pin_memory=torch.cuda.is_available() and not (isinstance(dataset, ImageTensor) and dataset.images.is_cuda),
    )


def read_batches(
    open_loader: Callable[[int], DataLoader], start: int, batch_size: int, patience: Patience = PATIENT
) -> Generator[tuple[Tensor, Tensor]]:
    """Yield batches without end. `.close()` stops the workers.

    If the folder of the images is gone, the loader is opened again when the folder is back.

    Args:
        open_loader: makes the DataLoader whose first image has the given number in the run.
        start: number of the first image.
        batch_size: global batch.
        patience: what to do while there is no batch.

    Raises:
        Interrupted: a stop signal arrived during a wait.
        DataGoneError: the folder did not come back.
        RuntimeError: a worker has died, or a batch is lost.
        UserError: an image cannot be read, and must not be skipped.
    """
    number = start
    while True:
        loader = open_loader(number)
        stream = loader.dataset
        assert isinstance(stream, KeyedStream)
        try:
            for batch in _batches(loader, stream.workers, count(number, batch_size), patience):
                yield batch
                number += batch_size
        except DataGoneError as gone:
            assert isinstance(stream.dataset, ImageFiles)
            patience.wait_for_folder(stream.dataset, gone, number)


def _batches(
    loader: DataLoader, workers: Workers, numbers: Iterator[int], patience: Patience
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of one loader. If it has workers, a thread waits for them, while this thread looks around.

    Args:
        loader: the loader.
        workers: its workers.
        numbers: number, in the run, of the first image of each batch.
        patience: what to do while there is no batch.
    """
    device = getattr(loader, "device", None)
    copies = CopyStream(device if loader.pin_memory else None)
    if not workers.count:
        iterator = iter(loader)
        while True:
            yield copies.receive(*copies.fetch(iterator))
    # An iterator that the main thread makes would raise errors about dead workers anywhere in the main thread.
    iterator = _in_thread(iter, loader).result()
    try:
        for number in numbers:
            batch = _in_thread(copies.fetch, iterator)
            patience.wait_for(batch, workers, number)
            try:
                parts = copies.receive(*batch.result())
            except (ConnectionError, EOFError) as error:  # the worker died while it passed on a batch
                raise RuntimeError(f"DataLoader worker {workers.death() or 'lost'}") from error
            except RuntimeError as error:
                if death := workers.death():
                    raise RuntimeError(f"DataLoader worker {death}") from error
                raise
            if any(not isinstance(part, Tensor) for part in parts):
                patience.say("shared memory", f"{SHARED} is full, so batches go through pipes, which is slower")
            images, labels = (torch.as_tensor(part, device=device) for part in parts)
            yield images, labels
    finally:
        del iterator  # this ends the workers, unless they wait for a storage that does not answer
        workers.kill()


class CopyStream:
    """Copies batches to a GPU on a stream of its own, so that the copies overlap with training.

    Args:
        device: the GPU, or another device, or None: without a GPU this class only passes batches on.
    """

    def __init__(self, device: torch.device | None) -> None:
        on_gpu = device is not None and device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if on_gpu else None

    def fetch(self, batches: Iterator[Any]) -> tuple[Any, torch.Event | None]:
        """Take the next batch, in any thread; returns the batch, and what tells that it has been copied."""
        if self._stream is None:
            return next(batches), None
        with torch.cuda.stream(self._stream):
            return next(batches), self._stream.record_event()

    def receive(self, batch: Any, copied: torch.Event | None) -> Any:
        """Return a batch, after letting the current stream, but not the host, wait until it has been copied."""
        if copied is not None:
            current = torch.cuda.current_stream()
            current.wait_event(copied)
            for part in batch:
                if isinstance(part, Tensor) and part.is_cuda:
                    part.record_stream(current)  # its memory is used by this stream too
        return batch


def _in_thread(call: Callable[..., Any], *arguments: Any) -> Future:
    """Call a function in a thread that does not keep the program from ending; returns its future result."""
    future: Future = Future()

    def run() -> None:
        try:
            future.set_result(call(*arguments))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="batches", daemon=True).start()
    return future
