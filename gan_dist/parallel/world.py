"""Read from the environment which process of a run this one is, and refuse what a launcher has not set up rightly.

Without these checks, processes could train separately instead of together, or wait for each other forever.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

import torch

from gan_dist import rng
from gan_dist.errors import ConfigError

TOGETHER = "start with torchrun, or with accelerate launch --multi_gpu, which works on CPUs too"


class Place(NamedTuple):
    """Which process of a run this one is, and where the processes of the run meet.

    Attributes:
        rank: number of this process, 0 … world_size - 1.
        world_size: number of processes in the run.
        local_rank: number of this process on its node.
        address: name or address of the host on which the processes meet.
        port: the port there.
    """

    rank: int
    world_size: int
    local_rank: int
    address: str
    port: int


def read_place() -> Place | None:
    """Return what the launcher says about this process; None if this process trains alone.

    Raises:
        ConfigError: some of the launcher's variables are missing or impossible, or several processes were started that
            would not train together.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    rank, world_size, local_rank, local_world_size = map(_number, (*names[:3], "LOCAL_WORLD_SIZE"))
    given = [name for name in names[:3] if name in os.environ]
    if not given or (world_size == 1 and not rank and "LOCAL_RANK" not in os.environ):
        _refuse_separate_processes()
        return None
    missing = [name for name in names if not os.environ.get(name)]
    if missing:
        has = " and ".join(f"{name}={os.environ[name]}" for name in given)
        raise ConfigError(
            f"the environment has {has}, but no value of {' and '.join(missing)}, so it is unclear which process of a "
            f"run this one is: {TOGETHER}; or unset {' and '.join(given)} to train in one process"
        )
    port = os.environ["MASTER_PORT"]
    if not re.fullmatch("[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise ConfigError(f"MASTER_PORT={port} must be a port number from 1 to 65535")
    place = Place(rank or 0, world_size or 0, local_rank or 0, os.environ["MASTER_ADDR"], int(port))
    for name, number, most, size in [
        ("RANK", place.rank, "WORLD_SIZE", place.world_size),
        ("LOCAL_RANK", place.local_rank, "LOCAL_WORLD_SIZE", local_world_size or place.world_size),
    ]:
        if number >= size:
            raise ConfigError(f"{name}={number} must be below the number of processes, {most}={size}: {TOGETHER}")
    return place


def _number(name: str) -> int | None:
    """The whole number that an environment variable holds; None if the variable is not set or empty."""
    text = os.environ.get(name, "")
    if text and not re.fullmatch(r"[0-9]{1,9}", text):
        raise ConfigError(f"{name}={text} must be a whole number; a launcher sets this variable: {TOGETHER}")
    return int(text) if text else None


def _refuse_separate_processes() -> None:
    """Refuse to train alone if several processes were started that should train together.

    Raises:
        ConfigError: there are several, and no launcher has numbered them.
    """
    # `accelerate launch` without --multi_gpu sets these two variables if it is asked for several processes.
    if {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= os.environ.keys() and "WORLD_SIZE" not in os.environ:
        raise ConfigError(f"several processes were asked for, but this process found a world size of 1: {TOGETHER}")
    # A step of one task, an interactive shell of salloc and a batch script do not have more than one task here.
    for name, instead in [
        ("SLURM_STEP_NUM_TASKS", "start the job with slurm/train.sbatch, which numbers them, or use srun --ntasks=1"),
        *((name, TOGETHER) for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")),
    ]:
        tasks = os.environ.get(name, "")
        if re.fullmatch("[0-9]+", tasks) and int(tasks) > 1:
            raise ConfigError(
                f"{name}={tasks} processes were started, but no RANK says which of them this one is, so each would "
                f"train by itself in the same directory: {instead}"
            )


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


_OFF = ("", "0", "false", "no", "off", "n", "f")  # values that switch a setting of Accelerate's launcher off
# Settings of Accelerate's launcher that would change the training: harmless values, and what to do instead.
_CHANGES = {
    "ACCELERATE_USE_FSDP": (_OFF, "launch without FSDP"),
    "ACCELERATE_USE_DEEPSPEED": (_OFF, "launch without DeepSpeed"),
    "ACCELERATE_USE_MEGATRON_LM": (_OFF, "launch without Megatron-LM"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": (_OFF, "launch without a parallelism config"),
    "ACCELERATE_USE_SAGEMAKER": (_OFF, "launch without SageMaker"),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (("", "1"), "set train.micro_batch_size instead"),
    "ACCELERATE_DYNAMO_BACKEND": (_OFF, "launch with dynamo_backend=no, and set train.compile=true instead"),
}
_CHANGES_ON_GPU = {
    "ACCELERATE_USE_CPU": (_OFF, "set train.device=cpu instead"),
    "ACCELERATE_TORCH_DEVICE": (("",), "unset it; each process uses the GPU with its LOCAL_RANK"),
}


def check_accelerate(cpu: bool) -> None:
    """Refuse settings of `accelerate launch` that would change the training.

    `gan_dist.settings.precision.resolve` checks its setting `mixed_precision`.

    Args:
        cpu: the run computes on the CPU.

    Raises:
        ConfigError: there is such a setting.
    """
    for name, (harmless, instead) in {**_CHANGES, **({} if cpu else _CHANGES_ON_GPU)}.items():
        value = os.environ.get(name, "")
        if value.lower() not in harmless:
            raise ConfigError(f"{name}={value}, which accelerate launch sets, would change the training: {instead}")


def processor(device: torch.device) -> dict[str, str]:
    """Return the versions of torch and of cuDNN, the names of the processor and of the generator of random numbers."""
    if device.type == "cuda":
        name, cudnn = torch.cuda.get_device_name(device), str(torch.backends.cudnn.version())
    else:
        name, cudnn = f"CPU, {torch.backends.cpu.get_cpu_capability()}", "none"
    return {"torch": torch.__version__, "cudnn": cudnn, "device": name, "random generator": rng.GENERATOR}
