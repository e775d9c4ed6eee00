"""Predict the time and memory of a run on many GPUs from counted operations and the speed of a machine.

The time of an operation is the time of its arithmetic or the time of its memory traffic, whichever is longer (the
roofline model of Williams et al. 2009), and at least the time to start an operation.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gan_dist.data import DataInfo
from gan_dist.errors import ConfigError
from gan_dist.kernels.layout import adapt
from gan_dist.kernels.switches import ieee_fp32, numerics
from gan_dist.planning.count import Iteration, Operation
from gan_dist.settings.schema import Config
from gan_dist.wiring.checks import check_game

BUCKET = 25 * 2**20  # size in bytes of the pieces (buckets) in which DistributedDataParallel sends gradients


@dataclass(frozen=True)
class Rates:
    """The speed of a processor (a GPU, or a CPU) and of its network.

    Attributes:
        matmul: floating-point operations per second of matrix products in fp32.
        convolution: floating-point operations per second of convolutions in fp32.
        tf32: floating-point operations per second of both in TF32.
        half: floating-point operations per second of both in bf16 or fp16.
        traffic: bytes per second from and to memory.
        memory: size of the memory in bytes.
        start: seconds to start an operation.
        bandwidth: bytes per second between processes, for the slowest link.
        latency: seconds until a message arrives.
    """

    matmul: float
    convolution: float
    tf32: float
    half: float
    traffic: float
    memory: float
    start: float
    bandwidth: float
    latency: float


# The makers' numbers for dense matrices, not measured by us. For the links between nodes we assume 400 Gbit/s per GPU
# (H200, H100), 200 Gbit/s (A100) and 100 Gbit/s (V100).
GPUS = {
    "h200": Rates(67e12, 67e12, 495e12, 989e12, 4.8e12, 141e9, 5e-6, 50e9, 10e-6),
    "h100": Rates(67e12, 67e12, 495e12, 989e12, 3.35e12, 80e9, 5e-6, 50e9, 10e-6),
    "a100": Rates(19.5e12, 19.5e12, 156e12, 312e12, 2.0e12, 80e9, 5e-6, 25e9, 10e-6),
    "v100": Rates(15.7e12, 15.7e12, 15.7e12, 125e12, 0.9e12, 32e9, 5e-6, 12.5e9, 10e-6),
}


@ieee_fp32()
def measured_rates() -> Rates:
    """Measure the rates of this machine, which takes some seconds.

    `bandwidth` and `latency` are not measured; 1 GB/s and 0.1 ms are assumed.
    """
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")

    def seconds(work: Callable[[], Tensor]) -> float:
        times: list[float] = []
        while len(times) < 2 or (len(times) < 7 and sum(times) < 0.2):
            start = time.perf_counter()
            work().flatten()[0].item()  # `item` waits for the device
            times.append(time.perf_counter() - start)
        return min(times)

    # Sizes for which the work takes much longer than starting the kernel and reading the result.
    n, c, side = (8192, 256, 64) if on_gpu else (1024, 64, 16)
    a, small = torch.randn(n, n, device=device), torch.ones(1, device=device)
    # Ones instead of zeros: memory of zeros may be provided at its first access only, which would be measured too.
    large, copy = (torch.ones(2**28 if on_gpu else 2**24, device=device) for _ in range(2))
    x, half = torch.randn(64, c, side, side, device=device), a.bfloat16()
    product = adapt(nn.Linear(n, n, bias=False, device=device).requires_grad_(False), "fp32")
    conv = adapt(nn.Conv2d(c, c, 3, padding=1, bias=False, device=device).requires_grad_(False), "fp32")
    with numerics("tf32", exact=True):
        tf32 = 2 * n**3 / seconds(lambda: product(a))
    memory = torch.cuda.get_device_properties(device).total_memory if on_gpu else math.inf
    return Rates(
        2 * n**3 / seconds(lambda: product(a)),
        2 * x.numel() * c * 9 / seconds(lambda: conv(x)),
        tf32,
        2 * n**3 / seconds(lambda: half @ half),
        2 * large.nbytes / seconds(lambda: copy.copy_(large)),
        memory,
        seconds(lambda: sum((small + 1 for _ in range(100)), small)) / 200,
        1e9,
        100e-6,
    )


@dataclass(frozen=True)
class Expected:
    """The prediction for one iteration, which is a row of the plan.

    Attributes:
        gpus: number of processes, each with one GPU.
        share: per-process batch.
        compute: seconds of computing.
        wait: seconds of communication that do not overlap with the backward passes.
        memory: bytes of memory of one process.
    """

    gpus: int
    share: int
    compute: float
    wait: float
    memory: float

    def seconds_per_kimg(self, images: int) -> float:
        """Return the seconds per 1,000 real images, if one iteration takes `images` real images."""
        return 1000 * (self.compute + self.wait) / images


def expect(iteration: Iteration, gpus: int, share: int, rates: Rates) -> Expected:
    """Predict the time and memory of an iteration from its counted operations.

    Args:
        iteration: the counts of one process.
        gpus: number of processes.
        share: per-process batch of these counts.
        rates: the speed of each process.
    """

    def seconds(operation: Operation) -> float:
        fp32 = rates.convolution if operation.convolution else rates.matmul
        arithmetic = rates.half if operation.half else rates.tf32 if iteration.tf32 else fp32
        return max(rates.start, operation.flops / arithmetic, operation.nbytes / rates.traffic)

    compute = sum(map(seconds, iteration.operations))
    wait = 0.0
    hops = 2 * math.log2(gpus) if gpus > 1 else 0.0  # messages one after the other in a tree all-reduce, up and down
    for name, steps in iteration.steps.items():
        nbytes = iteration.gradients[name]
        buckets = max(1, math.ceil(nbytes / BUCKET))
        ring = 2 * (gpus - 1) / gpus  # in a ring all-reduce, each process sends the data this many times
        sending = ring * nbytes / rates.bandwidth + buckets * hops * rates.latency
        backward = sum(seconds(o) for o in iteration.operations if o.backward_of == name) / steps
        # The last bucket cannot overlap with the backward pass, because it is complete only at the end of the pass.
        last = ring * min(nbytes, BUCKET) / rates.bandwidth + hops * rates.latency
        hidden = min(backward, sending - last) if buckets > 1 else 0.0
        wait += steps * (sending - hidden)
    wait += iteration.norms * (hops * rates.latency)
    return Expected(gpus, share, compute, wait if gpus > 1 else 0.0, iteration.persistent + iteration.peak)


def plan(config: Config, info: DataInfo, gpus: int, rates: Rates, count: Callable[[int], Iteration]) -> Expected:
    """Predict the time and memory of an iteration on `gpus` GPUs.

    Args:
        config: the settings of the run.
        info: the data set; see `gan_dist.data.datasets.describe`.
        gpus: number of GPUs.
        rates: the speed of each GPU.
        count: what `gan_dist.planning.counts.counter_of` returned for `config` and `info`.

    Raises:
        ConfigError: the global batch cannot be divided among the GPUs.
    """
    check_game(config, info, gpus)
    share = config.train.batch_size // gpus
    return expect(count(share), gpus, share, rates)


def pays_up_to(config: Config, info: DataInfo, rates: Rates, count: Callable[[int], Iteration]) -> int:
    """Return up to how many GPUs it is worth using: 1, 2, 4, 8, …

    The number is doubled as long as this is possible and shortens an iteration by at least 20%. The arguments are those
    of `plan`.
    """
    row = plan(config, info, 1, rates, count)
    while True:
        try:
            twice = plan(config, info, 2 * row.gpus, rates, count)
        except ConfigError:
            return row.gpus
        if twice.compute + twice.wait > 0.8 * (row.compute + row.wait):
            return row.gpus
        row = twice
