"""Load a data set for all processes together: download it only once, and keep it in memory only once per node."""

from __future__ import annotations

import logging
import math
import secrets
import shutil
import socket
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from gan_dist.data import DataInfo, Source
from gan_dist.data.datasets import load_dataset
from gan_dist.data.folder import ImageFiles, in_threads
from gan_dist.data.from_python import GivenImages
from gan_dist.data.in_memory import Images, ImageTensor, decode_all
from gan_dist.data.key import data_key, differences
from gan_dist.data.remarks import remarks
from gan_dist.errors import UserError
from gan_dist.parallel.distributed import Distributed

log = logging.getLogger(__name__)


def load_shared(source: Source, info: DataInfo, dist: Distributed, stage: Path | None) -> tuple[Images, str]:
    """Load the data set in all processes. All processes call this function together.

    The main process loads first, and downloads the data set if necessary. If the data set is kept in memory, one
    process per node decodes it, and the other processes of the node share this memory.

    Args:
        source: the data set that is asked for.
        info: what `gan_dist.data.datasets.describe` returned for `source`.
        dist: the processes.
        stage: a directory on a local disk of the node, to which image files are copied first; None for no copy. It is
            not used for a data set that is kept in memory.

    Returns:
        The data set, and its key, which `gan_dist.data.key` describes.

    Raises:
        UserError: see `gan_dist.data.datasets.load_dataset`; or a node has other images than the main process; or there
            is not enough space in the node's temporary directory or in `stage`.
    """
    loaded: list[Images] = []

    def load_on_main() -> bool:
        loaded.append(load_dataset(source, info))
        return isinstance(loaded[0], ImageTensor)

    in_memory = dist.from_main(load_on_main)

    def load() -> Images:
        return loaded.pop() if loaded else load_dataset(source, info)

    dataset = _once_per_node(load, dist) if in_memory else load()
    if stage and isinstance(dataset, ImageFiles):
        dataset = _copied_to(stage, dataset, dist)
    key = _common_key(dataset, source, info, dist)
    if dist.is_main:
        for remark in remarks(dataset, info):
            log.warning("data.root=%s: %s", source.root, remark)
    return dataset, key


def shrink(dataset: Images, factor: int, source: Source, info: DataInfo, dist: Distributed) -> Images:
    """Return the data set with smaller images, for an early stage of progressive growing.

    The images are made smaller once in advance if they then fit into memory, and otherwise each time they are read.
    Those of a data set from Python are made smaller each time, because they may be random.

    Args:
        dataset: what `load_shared` returned.
        factor: a power of two, by which height and width are divided; 1 returns the data set unchanged.
        source, info, dist: as for `load_shared`.

    Raises:
        UserError: see `load_shared`.
    """
    if factor == 1:
        return dataset
    if isinstance(dataset, ImageTensor):  # each pixel is the mean of a square
        parts = [F.avg_pool2d(part.float(), factor).round_().byte() for part in dataset.images.split(1024)]
        return dataset.with_images(torch.cat(parts))
    channels, height, width = dataset.image_shape
    files = dataset.resized((channels, height // factor, width // factor))
    if isinstance(files, GivenImages) or len(files) * math.prod(files.image_shape) > source.memory:
        return files
    smaller = _once_per_node(lambda: decode_all(files), dist)
    _common_key(smaller, source, info, dist)
    return smaller.on(dist.device)


def _common_key(dataset: Images, source: Source, info: DataInfo, dist: Distributed) -> str:
    """Return the `data_key` of the main process's images, after a check that every node has the same images.

    A data set from Python is checked in every process, because each process has made its own.

    Raises:
        UserError: a node has other images; the message names the node.
    """
    key = dist.from_main(lambda: data_key(dataset, info.num_classes))
    if not dist.is_main and (dist.is_local_main or isinstance(dataset, GivenImages)):
        here = dataset
        if isinstance(dataset, ImageFiles):  # `info` has the sizes of the main process's files
            files = dataset.files.with_sizes_below(dataset.root)
            here = ImageFiles(dataset.root, files, dataset.image_shape, dataset.skip_broken, dataset.notes)
        if changed := differences(key, data_key(here, info.num_classes)):
            what = f"the dataset= of rank {dist.rank}" if source.dataset is not None else f"data.root={source.root}"
            where = f"{what} on {socket.gethostname()}"
            unreadable = (
                f"; {len(here.unreadable)} of {len(here)} images cannot be read here" if here.unreadable else ""
            )
            raise UserError(f"{where}: the images differ from the main process's: {', '.join(changed)}{unreadable}")
    return key


def _once_per_node(make: Callable[[], Images], dist: Distributed) -> ImageTensor:
    """Call `make` in one process of each node, and share the result with the other processes of the node.

    The result goes through a file that all processes of the node map into memory, so it is in memory only once. The
    file's name is then deleted; the memory is freed when the last process ends.
    """
    if not dist.several:
        dataset = make()
        assert isinstance(dataset, ImageTensor)
        return dataset
    token = dist.from_main(lambda: secrets.token_hex(8))
    path = Path(tempfile.gettempdir()) / f"gan_dist-{token}-{dist.first_local_rank}.safetensors"
    files = None
    if dist.is_local_main:
        dataset = make()
        assert isinstance(dataset, ImageTensor)
        files = dataset.files
        unreadable = torch.tensor(dataset.unreadable, dtype=torch.int64)
        try:
            save_file({"images": dataset.images, "labels": dataset.labels, "unreadable": unreadable}, path)
        except Exception as error:  # for a full disk safetensors raises its own error, not OSError
            raise UserError(f"{path}: cannot write the decoded images there ({error}); set TMPDIR") from error
        del dataset
    dist.barrier()
    tensors = load_file(path)  # maps the file into memory instead of copying it
    dist.barrier()
    if dist.is_local_main:
        path.unlink()
    return ImageTensor(tensors["images"], tensors["labels"], tensors["unreadable"].tolist(), files)


def _copied_to(stage: Path, files: ImageFiles, dist: Distributed) -> ImageFiles:
    """Copy the files into `stage`, each under its absolute path, and return the data set of the copies.

    Copies that an earlier job has left there are used again.
    """
    root = stage / files.root.absolute().relative_to("/")

    def copy(part: Sequence[int]) -> list[bool]:
        return [_copy(files.path(i), root / files.files.name(i)) for i in part]

    if dist.is_local_main:
        try:
            copied = sum(in_threads(copy, range(len(files))))
        except OSError as error:
            raise UserError(f"GAN_DIST_STAGE={stage}: cannot copy images there ({error}); unset it") from error
        log.info("copied %d of %d images below %s", copied, len(files), stage)
    dist.barrier()
    return ImageFiles(root, files.files, files.image_shape, files.skip_broken)


def _copy(source: Path, copy: Path) -> bool:
    """Copy a file with its modification time; return False if the copy exists already, or if there is no source.

    The copy gets its final name only when it is complete, so a crash leaves no incomplete copy under that name.
    """
    if not source.is_file():
        return False  # `ImageFiles` then treats it as a broken file
    if copy.exists() and (copy.stat().st_size, copy.stat().st_mtime) == (source.stat().st_size, source.stat().st_mtime):
        return False
    copy.parent.mkdir(parents=True, exist_ok=True)
    temporary = copy.with_name(f".{copy.name}-{secrets.token_hex(4)}")
    shutil.copy2(source, temporary)
    temporary.rename(copy)
    return True
