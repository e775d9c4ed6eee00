"""One data set for all processes: listed once, downloaded once, and held in memory once on each node."""

from __future__ import annotations

import logging
import math
import secrets
import shutil
import socket
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from gan_dist.data import DataInfo, Source
from gan_dist.data.datasets import load_dataset
from gan_dist.data.folder import ImageFiles
from gan_dist.data.in_memory import Images, ImageTensor, data_key, decode_all
from gan_dist.errors import UserError
from gan_dist.parallel.distributed import Distributed

log = logging.getLogger(__name__)


def load_shared(source: Source, info: DataInfo, dist: Distributed, stage: Path | None) -> tuple[Images, str]:
    """`load_dataset` for all processes, and the `data_key` of what they have.

    The main process goes first, and with it any download. On each node one process then decodes the images, so that the
    node holds them once. Images that stay in files are copied below `stage`, if it is given: a directory on a disk of
    the node's own.

    Raises:
        UserError: as `load_dataset`; or a node has other images than the main process; or there is no room in the
            node's temporary directory or in `stage`.
    """
    loaded: list[Images] = []

    def load_on_main() -> bool:
        loaded.append(load_dataset(source, info))
        return isinstance(loaded[0], ImageTensor)

    in_memory = dist.from_main(load_on_main)

    def load() -> Images:
        return loaded.pop() if loaded else load_dataset(source, info)

    dataset = _mapped(load, dist) if in_memory else load()
    if stage and isinstance(dataset, ImageFiles):
        dataset = _staged(dataset, stage, dist)
    return dataset, _agreed(dataset, source, info, dist)


def shrink(dataset: Images, factor: int, source: Source, info: DataInfo, dist: Distributed) -> Images:
    """The data set with images smaller by a power of two: made once, not once a step, if they fit into memory.

    Raises:
        UserError: as `load_shared`.
    """
    if factor == 1:
        return dataset
    if isinstance(dataset, ImageTensor):  # each pixel is the mean of a square
        parts = [F.avg_pool2d(part.float(), factor).round_().byte() for part in dataset.images.split(1024)]
        return ImageTensor(torch.cat(parts), dataset.labels)
    assert isinstance(dataset, ImageFiles)
    channels, height, width = dataset.image_shape
    files = ImageFiles(dataset.files, (channels, height // factor, width // factor), dataset.skip_broken)
    if len(files) * math.prod(files.image_shape) > source.memory:
        return files
    smaller = _mapped(lambda: decode_all(files), dist)
    _agreed(smaller, source, info, dist)
    return smaller.on(dist.device)


def _agreed(dataset: Images, source: Source, info: DataInfo, dist: Distributed) -> str:
    """The `data_key` of the main process's images; a node that has others is named."""
    count, key = dist.from_main(lambda: (len(dataset), data_key(dataset, info.num_classes)))
    if dist.is_local_main and not dist.is_main and (len(dataset), data_key(dataset, info.num_classes)) != (count, key):
        where = f"data.root={source.root} on {socket.gethostname()}"
        raise UserError(f"{where}: {len(dataset)} images, which are not the {count} of the main process")
    return key


def _mapped(make: Callable[[], Images], dist: Distributed) -> ImageTensor:
    """What one process of each node makes, in a file that all of them map, and whose name is removed then."""
    if not dist.several:
        dataset = make()
        assert isinstance(dataset, ImageTensor)
        return dataset
    token = dist.from_main(lambda: secrets.token_hex(8))
    path = Path(tempfile.gettempdir()) / f"gan_dist-{token}-{dist.first_local_rank}.safetensors"
    if dist.is_local_main:
        dataset = make()
        assert isinstance(dataset, ImageTensor)
        try:
            save_file({"images": dataset.images, "labels": dataset.labels}, path)
        except Exception as error:  # safetensors has an error of its own for a full disk
            raise UserError(f"{path}: cannot write the decoded images there ({error}); set TMPDIR") from error
        del dataset
    dist.barrier()
    tensors = load_file(path)  # mapped, not copied
    dist.barrier()
    if dist.is_local_main:
        path.unlink()
    return ImageTensor(tensors["images"], tensors["labels"])


def _staged(files: ImageFiles, stage: Path, dist: Distributed) -> ImageFiles:
    """The same files below `stage`, each under its absolute path; what an earlier job has left is taken."""
    copies = [(stage / path.absolute().relative_to("/"), label) for path, label in files.files]
    if dist.is_local_main:
        try:
            with ThreadPoolExecutor(16) as pool:
                copied = sum(pool.map(_copy, (path for path, _ in files.files), (path for path, _ in copies)))
        except OSError as error:
            raise UserError(f"GAN_DIST_STAGE={stage}: cannot copy images there ({error}); unset it") from error
        log.info("copied %d of %d images below %s", copied, len(copies), stage)
    dist.barrier()
    return ImageFiles(copies, files.image_shape, files.skip_broken)


def _copy(source: Path, copy: Path) -> bool:
    """Whole or not at all, with its time; False if it is there, or if there is nothing to copy."""
    if not source.exists():
        return False  # the data set knows what to do about it
    if copy.exists() and (copy.stat().st_size, copy.stat().st_mtime) == (source.stat().st_size, source.stat().st_mtime):
        return False
    copy.parent.mkdir(parents=True, exist_ok=True)
    temporary = copy.with_name(f".{copy.name}-{secrets.token_hex(4)}")
    shutil.copy2(source, temporary)
    temporary.rename(copy)
    return True
