"""Decide how the steps of a run are computed: captured as CUDA graphs, compiled, or as they are."""

from __future__ import annotations

import importlib
import logging
import os
from typing import Any

from gan_dist.engine.compiled import CompiledGradients
from gan_dist.engine.graphs import CudaCapture, Graphs
from gan_dist.engine.update import reads_on_device
from gan_dist.errors import ConfigError
from gan_dist.parallel.distributed import Distributed
from gan_dist.parallel.sync_batch_norm import SyncBatchNorm
from gan_dist.parallel.wrapped import Wrapped
from gan_dist.settings.schema import Config
from gan_dist.wiring.networks import optimizer_arguments

log = logging.getLogger(__name__)


def make_graphs(config: Config, dist: Distributed) -> Graphs | None:
    """Return what captures the steps of a run as CUDA graphs; None if they are not captured.

    On a GPU the log says which it is, and why.

    Raises:
        ConfigError: `train.cuda_graphs` is "always", but the run does not allow it.
    """
    on_gpu, wanted = dist.device.type == "cuda", config.train.cuda_graphs
    reason = why_not_captured(config, on_gpu, dist.several, dist.precision)
    if reason and wanted == "always":
        raise ConfigError(f"train.cuda_graphs=always is not possible: {reason}; set train.cuda_graphs=auto")
    reason = reason or ("train.cuda_graphs=never" if wanted == "never" else "")
    if on_gpu and dist.is_main:
        log.info(
            "steps are not captured as CUDA graphs: %s" if reason else "steps are captured as CUDA graphs%s", reason
        )
    return None if reason else Graphs(CudaCapture(dist.device), log.info)


def why_not_captured(config: Config, on_gpu: bool, several: bool, precision: str) -> str:
    """Return why the steps of a run cannot be captured as CUDA graphs; "" if they can.

    Args:
        config: the settings.
        on_gpu: the run computes on a GPU.
        several: it has several processes.
        precision: its precision.
    """
    if not on_gpu:
        return "there is no GPU"
    if several:
        return "the processes exchange gradients while they compute them"
    if config.growth.stable_kimg:
        return "the networks grow"
    for name in ("G", "D"):
        optimizer = getattr(config.optim, name)
        arguments = optimizer_arguments(optimizer, on_gpu)
        if not reads_on_device(arguments):
            return f"optim.{name}.name={optimizer.name} reads its learning rate on the host"
        # A step that may be skipped is skipped on the device by fused optimizers alone.
        if not arguments.get("fused") and precision == "fp16":
            return f"optim.{name}.name={optimizer.name} skips steps of fp16 on the host"
        if not arguments.get("fused") and config.train.on_nonfinite == "skip":
            return f"optim.{name}.name={optimizer.name} skips steps (train.on_nonfinite=skip) on the host"
    return ""


def make_compiled(config: Config, wrapped: Wrapped, dist: Distributed) -> dict[str, CompiledGradients]:
    """Return what computes the gradients of "G" and "D" by compiled code; {} if the run computes them as they are."""
    if not config.train.compile:
        return {}
    networks = {"G": wrapped.G, "D": wrapped.D}
    if any(isinstance(part, SyncBatchNorm) for network in networks.values() for part in network.network.modules()):
        if dist.is_main:
            reason = "the batch normalization of several processes exchanges its statistics (train.sync_batch_norm)"
            log.warning("train.compile=true has no effect: %s", reason)
        return {}
    # torch would start up to 32 compilers in each process, whatever the number of cores.
    inductor: Any = importlib.import_module("torch._inductor.config")
    inductor.compile_threads = max(1, len(os.sched_getaffinity(0)) // dist.local_world_size)
    return {
        name: CompiledGradients(f"{name}'s loss", network, [other.network for other in networks.values()], dist)
        for name, network in networks.items()
    }
