"""`gan-dist plan [CONFIG.yaml] --gpus 8,64`: estimate the time and the memory of a run without training."""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from typing import TYPE_CHECKING

from gan_dist.cli.arguments import Parser, decimal, read_config, whole
from gan_dist.errors import ConfigError

if TYPE_CHECKING:
    from gan_dist.data import DataInfo
    from gan_dist.planning.plan import Rates
    from gan_dist.settings.schema import Config

USAGE = """\
usage: gan-dist plan [CONFIG.yaml] --gpus 8,64,512 [--gpu h100] [--bandwidth 50] [key.sub=value ...]

Estimate the time and the memory of a run. The operations and bytes of one iteration are counted and divided by the
rates of a GPU. Nothing is trained, and no GPU is needed.

  --gpus N,N       numbers of GPUs; without GPUs, of processes on CPUs, each with OMP_NUM_THREADS threads (default 1)
  --gpu NAME       use the rates that the maker states for h100, h200, a100 or v100 (default: measure this machine)
  --bandwidth G    gigabytes per second that a GPU can send to others over the slowest link
"""

NOTE = """\
"waiting" is the share of an iteration that is spent on communication outside the backward passes. "efficiency" is the
speed divided by (number of {} x speed of one {}). Real runs take longer, because the estimate assumes a program that
reaches the full rates of the machine.
"""


def plan(arguments: list[str]) -> int:
    """Parse the arguments, count an iteration, and print a row for each number of GPUs."""
    if any(argument in ("-h", "--help") for argument in arguments):
        print(USAGE, end="")
        return 0
    parser = Parser(prog="gan-dist plan", usage=USAGE.partition("\n")[0].removeprefix("usage: "))
    parser.add_argument("--gpus", default="1")
    parser.add_argument("--gpu")
    parser.add_argument("--bandwidth", type=decimal)
    options, settings = parser.parse_known_args(arguments)
    try:
        numbers = [whole(text) for text in options.gpus.split(",")]
    except argparse.ArgumentTypeError:
        numbers = [0]
    if min(numbers) < 1 or max(numbers) > 2**16:
        raise ConfigError(f"--gpus {options.gpus}: numbers of GPUs from 1 to 65536, for example 8,64,512")
    if options.bandwidth is not None and not 0 < options.bandwidth < math.inf:
        raise ConfigError(f"--bandwidth {options.bandwidth}: gigabytes per second, above 0 and finite")

    config = read_config(settings)

    import torch

    from gan_dist.data.datasets import describe
    from gan_dist.parts import load_plugins
    from gan_dist.planning import plan as planning
    from gan_dist.planning.settle import choose_batches
    from gan_dist.settings.config import choose
    from gan_dist.settings.precision import resolve
    from gan_dist.wiring.data import registered_dataset, source_of
    from gan_dist.wiring.parts import check_names, named_parts

    if options.gpu and options.gpu not in planning.GPUS:
        raise ConfigError(f"--gpu {options.gpu}: {choose(options.gpu, list(planning.GPUS))}")
    load_plugins(config.plugins)
    check_names(named_parts(config))
    info = describe(source_of(config.data, registered_dataset(config.data)))
    on_gpu = bool(options.gpu) or torch.cuda.is_available()
    config.train.precision = resolve(config.train, on_gpu)
    rates = planning.GPUS[options.gpu] if options.gpu else planning.measured_rates()
    if not config.train.batch_size:
        config.train.batch_size, config.train.micro_batch_size = choose_batches(config, info, on_gpu, rates.memory)
    if options.bandwidth:
        rates = replace(rates, bandwidth=options.bandwidth * 1e9)
    _print_rates(rates, options.gpu or "", supposed=not (options.gpu or options.bandwidth))
    _print_rows(config, info, rates, numbers, "GPU" if on_gpu else "process")
    return 0


def _print_rates(rates: Rates, gpu: str, supposed: bool) -> None:
    """Print the rates that the estimate uses.

    Args:
        rates: the rates.
        gpu: name of the GPU they belong to; "" for the rates measured on this machine.
        supposed: the bandwidth between processes is an assumption, because the user did not state it.
    """
    import torch

    threads = "" if torch.cuda.is_available() else f" with {torch.get_num_threads()} threads"
    here = f"this machine's, measured{threads}"
    print(
        f"rates: {gpu or here}: {rates.convolution / 1e12:.4g} TFLOP/s in convolutions, "
        f"{rates.matmul / 1e12:.4g} in products, {rates.tf32 / 1e12:.4g} in TF32, {rates.half / 1e12:.4g} in half "
        f"precision, memory "
        f"{rates.traffic / 1e9:.4g} GB/s, between processes {rates.bandwidth / 1e9:.4g} GB/s"
        f"{' (assumed)' if supposed else ''}"
    )


def _print_rows(config: Config, info: DataInfo, rates: Rates, numbers: list[int], unit: str) -> None:
    """Print the table, with a row for each number, and say from which number on more do not pay.

    Args:
        config: the settings.
        info: the data set.
        rates: the speed of each GPU or process.
        numbers: numbers of GPUs or processes.
        unit: "GPU", or "process" on CPUs.
    """
    from gan_dist.planning.counts import counter_of
    from gan_dist.planning.plan import pays_up_to, plan

    images, count = config.train.batch_size * config.train.n_critic, counter_of(config, info)
    micro = f", micro-batch {config.train.micro_batch_size}" if config.train.micro_batch_size else ""
    print(f"precision: {config.train.precision}; global batch {config.train.batch_size}{micro}")
    units = "GPUs" if unit == "GPU" else "processes"
    print(f"{units:>9} images each    s/kimg    hours  memory each  waiting efficiency")
    alone = plan(config, info, 1, rates, count).seconds_per_kimg(images)
    for number in numbers:
        row = plan(config, info, number, rates, count)
        seconds = row.seconds_per_kimg(images)
        too_large = "  more than a GPU has" if row.memory > rates.memory else ""
        print(
            f"{number:>9} {row.share:>11} {seconds:>9.3g} {seconds * config.train.kimg / 3600:>8.3g} "
            f"{row.memory / 1e9:>9.3g} GB {row.wait / (row.compute + row.wait):>8.0%} "
            f"{alone / (number * seconds):>10.0%}{too_large}"
        )
    most = pays_up_to(config, info, rates, count)
    print(f"More than {most} do not pay: twice as many save less than a fifth of the time, or cannot share the batch.")
    print(NOTE.format(units, unit), end="")
