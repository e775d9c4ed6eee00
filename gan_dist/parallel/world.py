"""Compare what the launcher has started with the GPUs and the world size that the process finds.

Without these checks, processes could train separately instead of together, or wait for each other forever.
"""

from __future__ import annotations

import os

from gan_dist.errors import ConfigError


def check_gpus(processes: int, gpus: int) -> None:
    """Refuse more processes on a node than it has GPUs, because NCCL does not let two processes use the same GPU.

    Args:
        processes: number of processes on this node.
        gpus: number of GPUs that each of them sees.

    Raises:
        ConfigError: there are more processes than GPUs.
    """
    if processes > gpus:
        sees, start = ("GPU", "process") if gpus == 1 else ("GPUs", "processes")
        raise ConfigError(
            f"{processes} processes were started on this node, but each sees {gpus} {sees}, and no two processes can "
            f"use the same one: start {gpus} {start} per node, or compute on CPUs with train.device=cpu"
        )


def check_world(world_size: int) -> None:
    """Refuse to train alone if the launcher has started several processes, which should train together.

    Args:
        world_size: number of processes in this process's group.

    Raises:
        ConfigError: the launcher's environment variables say another number.
    """
    wanted = int(os.environ.get("WORLD_SIZE", "1"))
    # `accelerate launch` without --multi_gpu sets these two variables if it is asked for several processes.
    simple_launcher = {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= os.environ.keys() and wanted == 1
    if wanted != world_size or (simple_launcher and "WORLD_SIZE" not in os.environ):
        asked = "several processes were asked for" if simple_launcher else f"WORLD_SIZE={wanted}"
        raise ConfigError(
            f"{asked}, but this process found a world size of {world_size}: start with torchrun, or with "
            "accelerate launch --multi_gpu, which works on CPUs too"
        )
