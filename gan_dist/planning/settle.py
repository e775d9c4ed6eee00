"""Choose what the settings of a run leave open: its batch, its micro-batch, and whether it is measured.

What is chosen becomes a setting of the run and is written into its `config.yaml`. So it stays the same when the run
goes on, whatever machine and number of processes the run then has.
"""

from __future__ import annotations

import math

import torch

from gan_dist.data import DataInfo
from gan_dist.errors import ConfigError
from gan_dist.metrics.extractors import inception_path
from gan_dist.parallel.distributed import Distributed
from gan_dist.planning.counts import counter_of
from gan_dist.planning.memory import memory_limit
from gan_dist.settings.schema import Config
from gan_dist.wiring.checks import check_game
from gan_dist.wiring.data import cache_dir

# The batch depends on the networks and the image size, and on the kind of device, but not on the speed or the number of
# the devices: the same command then gives the same run on every CPU, and on every GPU.
OPERATIONS = {"cpu": 5e12, "cuda": 40e12}  # floating-point operations of an iteration: about half a minute of two cores
SMALLEST, LARGEST = 8, 64  # images in a batch

OVERHEAD = 2.0  # training took up to so many times the counted memory: copies in other layouts, gaps between blocks
CPU_ROOM = 2.7e9  # bytes on a CPU: a few images keep its cores busy, so more at once would only take memory


def settle(config: Config, info: DataInfo, dist: Distributed) -> list[str]:
    """Choose what the settings leave open, and change them. All processes call this together; the main process decides.

    Args:
        config: the settings, checked by `gan_dist.wiring.checks.check_parts`. They are changed.
        info: the data set; see `gan_dist.data.datasets.describe`.
        dist: the processes.

    Returns:
        What was chosen, a sentence each.

    Raises:
        ConfigError: the batch cannot be chosen, or it cannot be divided among the processes.
    """
    train, metrics, notes = config.train, config.metrics, []
    if not train.batch_size:
        on_gpu = dist.device.type == "cuda"

        def choose() -> tuple[int, int]:
            free = torch.cuda.mem_get_info(dist.device)[0] if on_gpu else memory_limit() / dist.local_world_size
            return choose_batches(config, info, on_gpu, free)

        train.batch_size, train.micro_batch_size = dist.from_main(choose)
        check_game(config, info, dist.world_size)
        notes.append(
            f"chosen for this run: train.batch_size={train.batch_size} from the work of an iteration, and "
            f"train.micro_batch_size={train.micro_batch_size} from the memory"
        )
    may_lack = metrics.optional and metrics.extractor == "inception" and not metrics.inception_weights
    if metrics.every_kimg and may_lack:
        path = inception_path("", cache_dir())
        if not dist.from_main(path.exists):
            notes.append(
                f"no metric is measured, because Inception's weights are not at {path}. To get them, type gan-dist "
                "prefetch with the same arguments where there is internet. Later runs are then measured; to measure "
                f"this one too, go on with metrics.every_kimg={metrics.every_kimg:g}"
            )
            metrics.every_kimg = 0.0
    return notes


def choose_batches(config: Config, info: DataInfo, on_gpu: bool, free: float) -> tuple[int, int]:
    """Choose the global batch and the micro-batch of a run, both powers of two.

    The batch is the largest with which an iteration takes at most as many operations as OPERATIONS says. The
    micro-batch is the largest that fits into the memory.

    Args:
        config: the settings. If `train.micro_batch_size` is not 0, it is kept.
        info: the data set.
        on_gpu: the run computes on GPUs.
        free: bytes of memory that each process may use.

    Raises:
        ConfigError: an iteration of these networks cannot be counted.
    """
    count = counter_of(config, info)
    try:
        few, more = count(4), count(8)  # the smallest batches that all networks take
    except Exception as error:  # an architecture of the user's own may not run on the meta device
        raise ConfigError(
            f"train.batch_size=0: no batch can be chosen for model.name={config.model.name} ({type(error).__name__}: "
            f"{error}); set train.batch_size, for example to 32"
        ) from error
    work = sum(operation.flops for operation in few.operations) / 4  # of one image
    fits = OPERATIONS["cuda" if on_gpu else "cpu"] / max(work, 1)
    batch = _power_of_two(min(max(fits, SMALLEST), LARGEST, info.num_images))
    room = 0.9 * free if on_gpu else min(free / 2, CPU_ROOM)
    memory = max((more.peak - few.peak) / 4, 1)  # of one image
    fits = 4 + ((room - few.persistent) / OVERHEAD - few.peak) / memory
    return batch, config.train.micro_batch_size or min(batch, _power_of_two(fits))


def _power_of_two(number: float) -> int:
    """Return the largest power of two that is not larger than a number, and at least 1."""
    return 2 ** max(0, int(math.log2(max(number, 1))))
