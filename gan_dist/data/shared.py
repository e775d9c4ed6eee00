"""One data set for all processes: listed once, downloaded once, and held in memory once on each node."""

from __future__ import annotations

import secrets
import tempfile
from pathlib import Path

from safetensors.torch import load_file, save_file

from gan_dist.config import Data
from gan_dist.data import DataInfo
from gan_dist.data.sources import Images, ImageTensor, load_dataset
from gan_dist.distributed import Distributed
from gan_dist.errors import UserError


def load_shared(config: Data, info: DataInfo, dist: Distributed) -> Images:
    """`load_dataset` for all processes.

    The main process goes first, and with it any download. On each node one process then decodes the images into a file
    that all of its processes map, so that the node holds them once; the name is removed as soon as all have it.

    Raises:
        UserError: as `load_dataset`; or the node's temporary directory has no room.
    """
    if dist.world_size == 1:
        return load_dataset(config, info)
    loaded: list[Images] = []

    def load_on_main() -> tuple[bool, str]:
        loaded.append(load_dataset(config, info))
        return isinstance(loaded[0], ImageTensor), secrets.token_hex(8)

    in_memory, token = dist.from_main(load_on_main)
    if not in_memory:
        return loaded[0] if loaded else load_dataset(config, info)
    path = Path(tempfile.gettempdir()) / f"gan_dist-{token}-{dist.first_local_rank}.safetensors"
    if dist.is_local_main:
        dataset = loaded.pop() if loaded else load_dataset(config, info)
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
