"""Which images stand in for an image that cannot be read."""

from __future__ import annotations

from collections.abc import Iterator

from gan_dist.rng import Purpose, unit, words

DRAWN = 64  # so many images are drawn before they are tried one after the other


def stand_ins(seed: int, number: int, n: int) -> Iterator[int]:
    """Yield the images that may stand in for an unreadable one; the first that can be read is taken.

    They depend on the seed and on the number of the image only, so it makes no difference which process reads it, and
    if the images are in memory or in files.

    Args:
        seed: the seed of the order of the images.
        number: number of the unreadable image in the run.
        n: number of images in the data set.
    """
    last = 0
    for u in unit(words(seed, Purpose.STAND_IN, number, 1, DRAWN))[0].tolist():
        last = min(int(u * n), n - 1)
        yield last
    yield from ((last + i) % n for i in range(1, n))  # almost no image can be read
