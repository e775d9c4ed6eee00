"""Contestants take turns on one machine: each has its own processes and waits while the others run.

If the speed of the machine changes, it changes for all contestants, and no contestant can use what another has warmed
up or changed. Figures are ratios within a round. Each round has the reverse order of the round before.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import platform
import socket
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from itertools import chain
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Entry:
    """A contestant: the class `module:class`, created with `arguments` in each of its processes.

    The class has two methods. `losses(n)` returns the losses of D and G in its first n iterations; all contestants
    start with the same weights. `train(turns)` trains, for each turn, on the number of images of this turn. It runs in
    the main thread, as in a real program.
    """

    name: str
    factory: str
    arguments: dict[str, Any] = field(default_factory=dict)
    processes: int = 1


class Contestant:
    """The parent's side of an entry's processes. Each has an equal share of the cores, and one thread per core."""

    def __init__(self, entry: Entry, cores: Sequence[int]) -> None:
        self.name = entry.name
        spawn = multiprocessing.get_context("spawn")
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            port = server.getsockname()[1]
        n, each = entry.processes, len(cores) // entry.processes
        self._pipes, self._processes = [], []
        for rank in range(n):
            env = {"OMP_NUM_THREADS": str(each), "TORCH_CPP_LOG_LEVEL": "ERROR"}
            if n > 1:
                env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n),
                        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
            here, there = spawn.Pipe()
            own = list(cores[rank * each : (rank + 1) * each])
            process = spawn.Process(target=_serve, args=(entry.factory, entry.arguments, env, own, there), daemon=False)
            process.start()
            self._pipes.append(here)
            self._processes.append(process)

    def ask(self, method: str, *arguments: Any) -> tuple[float, list[Any]]:
        """Call a method in all processes at once: (seconds of the slowest, what each returned)."""
        try:
            for pipe in self._pipes:
                pipe.send((method, arguments))
            answers = [pipe.recv() for pipe in self._pipes]
        except (EOFError, OSError):
            raise SystemExit(f"{self.name}: one of its processes has ended") from None
        for _, result in answers:
            if isinstance(result, Exception):
                raise SystemExit(f"{self.name}: {type(result).__name__}: {result}")
        return max(seconds for seconds, _ in answers), [result for _, result in answers]

    def close(self) -> None:
        for pipe in self._pipes:
            with suppress(OSError):
                pipe.send(None)
        for process in self._processes:
            process.join(10)
            process.kill()


def _serve(factory: str, arguments: dict[str, Any], env: dict[str, str], cores: list[int], pipe: Connection) -> None:
    os.environ |= env
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(len(cores))
    module, _, name = factory.partition(":")
    try:
        contestant = getattr(importlib.import_module(module), name)(**arguments)
        contestant.train(_turns(contestant, pipe))
    except Exception as error:
        pipe.send((0.0, RuntimeError(f"{type(error).__name__}: {error}")))
    os._exit(0)  # a process must not wait for the others at exit


def _turns(contestant: Any, pipe: Connection) -> Iterator[int]:
    """Yield the number of images of each turn. A turn lasts until the next request; others are answered here."""
    while (order := pipe.recv()) is not None:
        method, arguments = order
        start, result = time.perf_counter(), None
        if method == "run":
            yield arguments[0]
            wait_for_gpu()  # work that is still queued belongs to this turn
        else:
            result = getattr(contestant, method)(*arguments)
        pipe.send((time.perf_counter() - start, result))


def wait_for_gpu() -> None:
    """Wait until the GPU has finished all its work. Does nothing if no GPU is used."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def peak_mib() -> float:
    """The peak memory of this process so far, MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def peak_of_device() -> float:
    """The peak memory so far, MiB: of this process's tensors on the GPU, or of the whole process if no GPU is used."""
    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_initialized() else peak_mib()


def check_agreement(contestants: Sequence[Contestant], tolerance: float = 2e-3) -> dict[str, list[list[float]]]:
    """Check that all compute the same losses in the first iterations, from the same weights, images and latents.

    Raises:
        SystemExit: a contestant computes other losses.
    """
    losses = {}
    for contestant in contestants:
        shares = contestant.ask("losses", 3)[1]
        losses[contestant.name] = [
            [statistics.mean(values) for values in zip(*iteration)] for iteration in zip(*shares)
        ]
    first = next(iter(losses.values()))
    for name, found in losses.items():
        for a, b in zip(chain(*first), chain(*found)):
            if not abs(a - b) <= tolerance * max(1.0, abs(a)):
                raise SystemExit(f"{name} computes other losses: {found}, not {first}")
    return losses


def take_turns(contestants: Sequence[Contestant], images: int, rounds: int) -> dict[str, list[float]]:
    """Images per second of each contestant in each round. A first turn to warm up is not counted."""
    for contestant in contestants:
        contestant.ask("run", images)
    speeds: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    for number in range(rounds):
        for contestant in contestants if number % 2 else reversed(contestants):
            speeds[contestant.name].append(images / contestant.ask("run", images)[0])
    return speeds


def ratios(speeds: dict[str, list[float]], name: str, over: str) -> list[float]:
    return [a / b for a, b in zip(speeds[name], speeds[over])]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The median and the range, as text."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def table(speeds: dict[str, list[float]], over: Sequence[str]) -> str:
    """One row per contestant: images/s, and the ratio to each one in `over`; medians and ranges of the rounds."""
    lines = [f"{'':<34}{'images/s':>10}" + "".join(f"{'over ' + name:>26}" for name in over)]
    for name, values in speeds.items():
        against = "".join(f"{spread(ratios(speeds, name, other)):>26}" for other in over)
        lines.append(f"{name:<34}{statistics.median(values):>10.0f}{against}")
    return "\n".join(lines)


def machine() -> dict[str, str]:
    """The facts that must be given with every figure: date, machine and versions."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    gpu = [torch.cuda.get_device_name(), f"CUDA {torch.version.cuda}"] if torch.cuda.is_available() else []
    packages = ("torch", "torchvision", "accelerate", "torchmetrics", "torch-fidelity")
    return {
        "date": str(date.today()),
        "machine": ", ".join([platform.machine(), model, f"{os.cpu_count()} cores", *gpu]),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def write(path: Path | None, report: dict[str, Any]) -> None:
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**machine(), **report}, indent=1) + "\n")
