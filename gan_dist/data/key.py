"""The key of a data set: a short text that identifies its content.

A key of version 2 is `2:<images>:<classes>:<names>:<sizes>:<sample>:<pixels>`. The last four parts are hashes of 16
hexadecimal digits, or `-` if they are not known:

- names: the names, relative to the root, and labels of all files, in their order;
- sizes: the sizes of all files in bytes;
- sample: the pixels of 64 evenly spaced images;
- pixels: the pixels of all images, and all labels; known if the images are in memory.

A data set that is read file by file in one start of a run, and kept in memory in the next one, has the same names,
sizes and sample in both. All but the names can be computed without some of the images: a damaged file that was mended
is left out of a comparison.

Of a data set from Python, `pixels` are those of 1,000 evenly spaced images before their transforms, or, if its code
needs the transforms, with fixed random numbers; and all labels. If it gives itself a key, `pixels` is the hash of that.

A key of version 1 has only 16 hexadecimal digits, a hash of 64 images with their labels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence

import numpy as np

from gan_dist.data.files import FileList
from gan_dist.data.folder import ImageFiles, in_threads
from gan_dist.data.from_python import GivenImages
from gan_dist.data.in_memory import Images, ImageTensor

SAMPLE = 64  # so many images are compared if not all of them are in memory
GIVEN_SAMPLE = 1000  # the same of data sets from Python, which have no names and sizes of files
PARTS = ("version", "number of images", "number of classes", "names or classes of files", "sizes of files",
         f"pixels of {SAMPLE} images", "pixels or labels")  # fmt: skip
UNKNOWN = "-"


def data_key(dataset: Images, num_classes: int, without: Collection[int] = ()) -> str:
    """Return the key of a data set; see the head of this file.

    Args:
        dataset: the data set.
        num_classes: number of classes.
        without: numbers of images that are left out of sizes, sample and pixels.
    """
    n = len(dataset)
    files = dataset.files if isinstance(dataset, ImageFiles) else dataset.files and dataset.files.files
    left_out = frozenset(without)
    parts = ["2", str(n), str(num_classes)]
    parts += [_names(files), _sizes(files, left_out)] if files else [UNKNOWN, UNKNOWN]
    sample = [i for i in _spaced(n, SAMPLE) if i not in left_out]
    parts.append(_pixels(dataset, sample) if files else UNKNOWN)
    labels = _hash(dataset.labels.cpu().numpy().tobytes())
    if isinstance(dataset, ImageTensor):
        parts.append(_pixels(dataset, [i for i in range(n) if i not in left_out], labels))
    elif isinstance(dataset, ImageFiles):
        parts.append(UNKNOWN)
    elif dataset.key:
        parts.append(_words(_hash(dataset.key.encode())))
    else:
        parts.append(_pixels(dataset.without_transforms(), _spaced(n, GIVEN_SAMPLE), labels))
    return ":".join(parts)


def reference_key(dataset: Images, key: str) -> str:
    """Return the key of the images against which generators are measured.

    It is the key of the data set. Of a data set from Python these are the images after their transforms, so the pixels
    of some of them are added.

    Args:
        dataset: the data set.
        key: its `data_key`.
    """
    return f"{key}:{_pixels(dataset, _spaced(len(dataset), SAMPLE))}" if isinstance(dataset, GivenImages) else key


def differences(before: str, now: str) -> list[str]:
    """Return in words which parts of two keys of version 2 differ, of those that both have; [] if it is the same data.

    Raises:
        ValueError: one of them is not such a key.
    """
    old, new = before.split(":"), now.split(":")
    if len(old) != len(PARTS) or len(new) != len(PARTS):
        raise ValueError(f"{before} or {now} is not a key of version 2")
    return [name for name, a, b in zip(PARTS, old, new) if a != b and UNKNOWN not in (a, b)]


def is_in_memory(key: str) -> bool:
    """Tell if a key of version 2 is of a data set whose images were in memory."""
    return not key.endswith(UNKNOWN)


def old_key(dataset: Images, num_classes: int) -> str:
    """Return the key of version 1 of a data set.

    When these keys were written, unreadable images of a data set in memory were removed from it; for one that was read
    file by file, the next readable file stood in for them.
    """
    if isinstance(dataset, ImageFiles):
        good = list(range(len(dataset)))
        indices = [_next_readable(dataset, i * len(good) // 64) for i in range(64)]
    else:
        left_out = frozenset(dataset.unreadable)
        good = [i for i in range(len(dataset)) if i not in left_out]
        indices = [good[i * len(good) // 64] for i in range(64)]
    digest = hashlib.sha256(f"{len(good)} {num_classes}".encode())
    images, labels = dataset.__getitems__(indices)
    if not images.is_floating_point():  # points are left out: their last bits differ between processors
        digest.update(images.cpu().numpy().tobytes())
    digest.update(labels.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _next_readable(files: ImageFiles, index: int) -> int:
    n = len(files)
    return next((i % n for i in range(index, index + n) if files.read(i % n) is not None), index)


def _hash(content: bytes | memoryview, salt: int = 0) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8, salt=salt.to_bytes(16, "little")).digest(), "little")


def _words(total: int) -> str:
    return f"{total % 2**64:016x}"


def _spaced(n: int, count: int) -> list[int]:
    """Return the numbers of `count` evenly spaced images of n, or of all if there are fewer."""
    return sorted({i * n // count for i in range(count)})


def _names(files: FileList) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for array in (files.ends, files.labels, files.names):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _sizes(files: FileList, left_out: frozenset[int]) -> str:
    kept = np.delete(np.arange(len(files)), sorted(left_out))
    pairs = np.stack([kept, files.sizes[kept]], axis=1)
    return _words(_hash(pairs.tobytes()))


def _pixels(dataset: Images, indices: Sequence[int], labels: int = 0) -> str:
    """Hash the images with these numbers, without those that cannot be read."""

    def hashes(part: Sequence[int]) -> list[int]:
        kept, images = dataset.readable(part)
        return [_hash(image.data, i) for i, image in zip(kept, images.flatten(1).cpu().numpy())]

    if not isinstance(dataset, ImageTensor):
        parts = (indices[i : i + SAMPLE] for i in range(0, len(indices), SAMPLE))  # not all of them in memory at once
        return _words(sum(sum(hashes(part)) for part in parts) + labels)
    if dataset.images.is_floating_point():
        return _words(labels)  # points: their last bits differ between processors
    return _words(sum(in_threads(hashes, indices)) + labels)
