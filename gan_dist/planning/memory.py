"""Estimate the memory that a run takes, before it starts, and compare it with what there is.

The estimate is coarse, and made within two seconds: it counts the activations of one pass through G and D.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from gan_dist.data import DataInfo
from gan_dist.data.datasets import is_from_python, of_files
from gan_dist.data.workers import PREFETCH
from gan_dist.kernels import convolution
from gan_dist.parallel.distributed import Distributed
from gan_dist.settings.schema import Config, Optimizer
from gan_dist.wiring.networks import make_optimizer, networks_on_meta

log = logging.getLogger(__name__)

PROGRAM = 0.6e9  # bytes of a process with its libraries
WORKER = 0.15e9  # bytes of a data worker, which shares most of its memory with its process
NONE = 2**60  # a limit that is larger than any memory


@dataclass(frozen=True)
class Needs:
    """The memory of a run in bytes, coarsely.

    Attributes:
        data: the decoded data set, which all processes of a node share; 0 if it is read file by file.
        networks: weights, gradients, moments and G_ema, of each process.
        activations: what an iteration keeps for its backward passes, of each process.
        workers: the data workers of each process, with their batches.
        micro_batch: number of images to which `activations` belongs.
    """

    data: float
    networks: float
    activations: float
    workers: float
    micro_batch: int

    @property
    def each(self) -> float:
        """Bytes of each process on a CPU, without the data set."""
        return PROGRAM + self.networks + self.activations + self.workers


def estimate(config: Config, info: DataInfo, world_size: int) -> Needs:
    """Estimate the memory of a run on CPUs.

    Args:
        config: the settings.
        info: the data set; see `gan_dist.data.datasets.describe`.
        world_size: number of processes.
    """
    share = max(config.growth.batch_sizes or [config.train.batch_size]) // world_size
    micro_batch = min(share, config.train.micro_batch_size or share)
    tried = min(micro_batch, 4)
    weights, activations = _networks(config, info, tried)
    networks = sum(size * (2 + moments(getattr(config.optim, side)) + (side == "G")) for side, size in weights.items())
    data = data_bytes(config, info)
    batch = share * math.prod(info.image_shape)
    workers = 0 if data else config.data.workers * (WORKER + PREFETCH * batch)
    half = 0.5 if config.train.precision in ("bf16", "fp16") else 2.0 if config.train.precision == "fp64" else 1.0
    return Needs(data, networks, half * activations / tried * micro_batch, workers, micro_batch)


def data_bytes(config: Config, info: DataInfo) -> int:
    """Return the bytes of the decoded data set; 0 if its images are read when they are needed."""
    if is_from_python(config.data.name):
        return 0
    size = math.prod(info.image_shape) * info.num_images
    return 0 if of_files(config.data.name) and size > config.data.memory_gib * 2**30 else size


def moments(optimizer: Optimizer) -> float:
    """Return the size of what an optimizer keeps for each weight, relative to the size of the weights.

    Adam keeps two moments, for example, and SGD without momentum nothing. A step of a small weight shows it.
    """
    layer = nn.Linear(64, 64, bias=False)
    made = make_optimizer(optimizer, layer)
    layer.weight.grad = torch.ones_like(layer.weight)
    made.step()
    kept = [value for value in made.state[layer.weight].values() if isinstance(value, Tensor)]
    return round(sum(value.nbytes for value in kept) / layer.weight.nbytes, 1)


def _networks(config: Config, info: DataInfo, n: int) -> tuple[dict[str, int], int]:
    """Return the bytes of the weights of "G" and "D", and of the activations for `n` images, all in fp32.

    The networks are on the meta device, where tensors have shapes but no values.
    """
    loss, model = config.loss, config.model
    classes = info.num_classes if model.conditional else 0
    penalised = loss.r1_gamma > 0 or loss.r2_gamma > 0 or loss.gradient_penalty > 0
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage.nbytes()
        return tensor.detach()  # an operation that keeps its own result would never be freed

    # The generator of random numbers is left as it is, because the initial weights of the run depend on it.
    with torch.random.fork_rng(devices=[]), torch.device("meta"), saved_tensors_hooks(keep, lambda tensor: tensor):
        G, D = networks_on_meta(model, info.image_shape, classes)
        sizes = {name: sum(p.nbytes for p in module.parameters()) for name, module in (("G", G), ("D", D))}
        own = [p.untyped_storage()._cdata for module in (G, D) for p in module.parameters()]
        y = torch.zeros(n, dtype=torch.int64) if classes else None
        x = torch.zeros(2 * n, *info.image_shape, requires_grad=penalised)
        with convolution.twice_differentiable():
            logits = D(x, None if y is None else torch.cat([y, y]))
            gradient = torch.autograd.grad(logits.sum(), x, create_graph=True) if penalised else ()
        d_step = sum(size for key, size in saved.items() if key not in own)
        saved.clear()
        del logits, gradient
        fake = D(G(torch.zeros(n, model.z_dim), y), y)
        g_step = sum(size for key, size in saved.items() if key not in own)
        del fake
    return sizes, max(d_step, g_step)


def memory_limit(cgroups: Path = Path("/sys/fs/cgroup"), proc: Path = Path("/proc")) -> int:
    """Return the bytes of memory that the processes of this node may use together.

    This is the limit of the control group of a container or a job, or of a group that contains it, or the memory that
    the machine has available, whichever is smallest.

    Args:
        cgroups: where the control groups are mounted.
        proc: where the kernel describes this process.
    """
    limits = [NONE]
    for line in _read(proc / "self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        top, name = (cgroups, "memory.max") if not controllers else (cgroups / "memory", "memory.limit_in_bytes")
        if not controllers or "memory" in controllers.split(","):
            group = top / path.strip("/")
            groups = [group, *group.parents] if group.is_relative_to(top) else [top]
            texts = [_read(folder / name) for folder in groups if folder.is_relative_to(top)]
            limits += [int(text) for text in map(str.strip, texts) if text.isdigit()]
    available = [line.split()[1] for line in _read(proc / "meminfo").splitlines() if line.startswith("MemAvailable")]
    return min(limits + [1024 * int(kib) for kib in available])


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def warn_of_memory(config: Config, info: DataInfo, dist: Distributed) -> None:
    """Warn if the run may take more memory than there is, and name the setting to change. The main process calls this.

    Args:
        config: the settings.
        info: the data set; see `gan_dist.data.datasets.describe`.
        dist: the processes.
    """
    try:
        needs = estimate(config, info, dist.world_size)
    except Exception as error:  # an architecture of the user's own may not run on the meta device
        log.info("the memory of the run is not estimated (%s: %s)", type(error).__name__, " ".join(str(error).split()))
        return
    processes, on_gpu = dist.local_world_size, dist.device.type == "cuda"
    of_each = PROGRAM + needs.workers if on_gpu else needs.each
    total, limit = needs.data + processes * of_each, memory_limit()
    if total > limit:
        log.warning(
            "the run may be killed: %d process(es) on this node take about %.1f GB of memory, and %.1f GB are allowed; "
            "set %s",
            processes, total / 1e9, limit / 1e9, _remedy(needs, limit, processes, on_gpu),
        )  # fmt: skip
    if on_gpu:
        allowed = torch.cuda.get_device_properties(dist.device).total_memory
        if (taken := needs.networks + needs.activations) > allowed:
            log.warning(
                "the GPU's memory of %.1f GB may be too small: training takes about %.1f GB; set "
                "train.micro_batch_size below %d",
                allowed / 1e9, taken / 1e9, needs.micro_batch,
            )  # fmt: skip


def _remedy(needs: Needs, limit: float, processes: int, on_gpu: bool) -> str:
    """Return the setting that makes the largest part of the memory smaller, with a value if one is enough."""
    parts = {"data": needs.data, "workers": processes * needs.workers}
    if not on_gpu:
        parts |= {"activations": processes * needs.activations, "networks": processes * needs.networks}
    largest = max(parts, key=lambda name: parts[name])
    if largest == "data":
        return f"data.memory_gib below {needs.data / 2**30:.3g}, so that images are read file by file"
    if largest == "workers":
        return "a lower data.workers"
    if largest == "networks":
        return "smaller model.g_widths and model.d_widths"
    room = (limit - needs.data) / processes - needs.each + needs.activations
    fits = int(room / (needs.activations / needs.micro_batch))
    value = 2 ** int(math.log2(fits)) if fits >= 1 else 1
    return f"train.micro_batch_size={value}, which gives the same batches in smaller parts"
