"""The endless stream of training images, a function of (seed, images seen)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from gan_dist.data.sources import Images, ImageTensor
from gan_dist.rng import Purpose, coins, permutation, to_device


class KeyedBatches(Sampler[list[int]]):
    """Global batches of data set indices from image number `start` on, without end.

    Image number a of a run is image `permutation(seed, epoch)[a mod n]` of the data set, in epoch a div n. Batches run
    across the ends of epochs, so each image is shown once per epoch whatever the batch size.
    """

    drop_last = True  # asked for by Accelerate's sharding; every batch here is full

    def __init__(self, num_images: int, batch_size: int, seed: int, start: int) -> None:
        self.num_images = num_images
        self.batch_size = batch_size
        self.seed = seed
        self.start = start

    def __iter__(self) -> Iterator[list[int]]:
        order = lru_cache(maxsize=2)(lambda epoch: permutation(self.seed, Purpose.ORDER, epoch, self.num_images))
        nimg = self.start
        while True:
            numbers = np.arange(nimg, nimg + self.batch_size)
            epochs, positions = numbers // self.num_images, numbers % self.num_images
            parts = [order(epoch)[positions[epochs == epoch]] for epoch in range(epochs[0], epochs[-1] + 1)]
            yield np.concatenate(parts).tolist()
            nimg += self.batch_size


def _as_fetched(batch: Any) -> Any:
    return batch  # `__getitems__` returns whole batches already


def make_loader(dataset: Images, batch_size: int, seed: int, start: int, workers: int) -> DataLoader:
    """Global batches (uint8 (N, C, H, W), int64 (N,)); Accelerate gives each process its slice of them."""
    in_memory = isinstance(dataset, ImageTensor)
    return DataLoader(
        dataset,
        batch_sampler=KeyedBatches(len(dataset), batch_size, seed, start),
        collate_fn=_as_fetched,
        num_workers=0 if in_memory else workers,
        pin_memory=torch.cuda.is_available() and not in_memory,
    )


class Preprocess:
    """uint8 images of a batch to float in [-1, 1], mirrored with probability 1/2 if asked, on their device."""

    def __init__(self, seed: int, hflip: bool) -> None:
        self.seed = seed
        self.hflip = hflip

    def __call__(self, images: Tensor, first: int) -> Tensor:
        """uint8 (N, C, H, W), the images number first … first + N - 1 of the run, to float32 of the same shape."""
        x = images.float().div_(127.5).sub_(1)
        if self.hflip:
            mirrored = to_device(coins(self.seed, Purpose.FLIP, first, len(images)), x.device)
            x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
        return x


def to_uint8(x: Tensor) -> Tensor:
    """Float images in [-1, 1] to uint8, clamped and rounded: the inverse of `Preprocess`."""
    return x.float().add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
