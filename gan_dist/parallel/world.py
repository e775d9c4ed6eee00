"""What a launcher has started is compared with what there is, so that nobody trains alone or waits in vain."""

from __future__ import annotations

import os

from gan_dist.errors import ConfigError


def check_gpus(processes: int, gpus: int) -> None:
    """Refuse more processes on a node than it has GPUs: NCCL lets no two of them use the same one."""
    if processes > gpus:
        sees, start = ("GPU", "process") if gpus == 1 else ("GPUs", "processes")
        raise ConfigError(
            f"{processes} processes were started on this node, but each sees {gpus} {sees}, and no two processes can "
            f"use the same one: start {gpus} {start} per node, or compute on CPUs with train.device=cpu"
        )


def check_world(world_size: int) -> None:
    """Refuse to be one of several processes that each train alone."""
    wanted = int(os.environ.get("WORLD_SIZE", "1"))
    simple_launcher = {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= os.environ.keys() and wanted == 1
    if wanted != world_size or (simple_launcher and "WORLD_SIZE" not in os.environ):
        asked = "several processes were asked for" if simple_launcher else f"WORLD_SIZE={wanted}"
        raise ConfigError(
            f"{asked}, but this one is in a world of {world_size}: start with torchrun, or with "
            "accelerate launch --multi_gpu, which serves processes on CPUs too"
        )
