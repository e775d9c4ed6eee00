"""Build the stream of training batches from the config."""

from __future__ import annotations

import logging
import math
import socket
import time
from collections.abc import Callable

from torch.utils.data import DataLoader

from gan_dist.data import DataInfo
from gan_dist.data.in_memory import Images, ImageTensor
from gan_dist.data.loader import make_loader, read_batches
from gan_dist.data.shared import shrink
from gan_dist.data.waiting import Patience
from gan_dist.data.workers import PREFETCH, fitting_prefetch
from gan_dist.engine.batches import Batches, Stream
from gan_dist.engine.growth import Stage
from gan_dist.engine.step import Alternation
from gan_dist.parallel.distributed import Distributed
from gan_dist.parallel.stop import StopAgreement
from gan_dist.settings.schema import Config
from gan_dist.wiring.data import source_of
from gan_dist.wiring.iteration import last_stage

log = logging.getLogger(__name__)


def make_batches(
    config: Config, info: DataInfo, dataset: Images, step: Alternation, stop: StopAgreement, dist: Distributed
) -> Batches:
    """Make the stream of training batches. The early stages of progressive growing get smaller images."""
    source, last = source_of(config.data), last_stage(step.state)
    n_critic, workers, say = config.train.n_critic, config.data.workers, _once(dist)

    def open_stream(stage: Stage, nimg: int, seed: int) -> Stream:
        images = shrink(dataset, 2 ** (last - stage.number), source, info, dist)
        prefetch = PREFETCH
        if not isinstance(images, ImageTensor):
            share = math.prod(images.image_shape) * stage.batch_size // dist.world_size
            # On a CPU the batches stay in shared memory until they are used; Accelerate fetches one more.
            held = 2 + (stop.lag + 1) * n_critic * (dist.device.type == "cpu")
            prefetch, message = fitting_prefetch(share, workers, held, dist.local_world_size)
            if message:
                say("shared memory", message)

        def open_loader(first: int) -> DataLoader:
            return dist.prepare_loader(make_loader(images, stage.batch_size, seed, first, workers, prefetch))

        return read_batches(open_loader, nimg, stage.batch_size, Patience(lambda: stop.requested, say))

    return Batches(step.growth, open_stream, n_critic)


def _once(dist: Distributed) -> Callable[[str, str], None]:
    """Return a function of a key and a message, which logs the message in the first process that has it."""
    keys: set[str] = set()

    def say(key: str, message: str) -> None:
        if key in keys:
            return
        keys.add(key)
        if not dist.is_main:
            time.sleep(2)  # the main process comes first, because it writes log.txt
        if dist.first(key):
            where = f"rank {dist.rank} on {socket.gethostname()}: " if dist.several else ""
            log.warning("%s%s", where, message)

    return say
