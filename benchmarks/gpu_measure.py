"""How the parts of `benchmarks.gpu` measure in their own process: time, turns, kernels, launches, waits, memory."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.arena import peak_mib, wait_for_gpu

MODES = {"exact": ["train.exact=true"], "faster": ["train.exact=false"]}


class Goal(NamedTuple):
    """A row of the table at the end: the wanted value, and the values that were measured in one of the `MODES`."""

    what: str
    measured_as: str
    sign: str  # ≥ or ≤
    wanted: float
    mode: str
    values: list[float]  # one for each round


@dataclass
class Row:
    """A result of a part: its name, and its figures by name."""

    name: str
    figures: dict[str, Any]
    goals: list[Goal] = field(default_factory=list)


Rows = Iterator[Row]


def on_gpu() -> bool:
    return torch.cuda.is_available()


class Timed(Protocol):
    """A contestant that can be measured.

    Attributes:
        images: number of real images of an iteration.
        warm_up: number of iterations before it is measured.
    """

    images: int
    warm_up: int

    def around(self) -> AbstractContextManager[Any]:
        """The context in which everything of this contestant is measured."""

    def iteration(self) -> None: ...

    def d_step(self) -> None: ...

    def g_step(self) -> None: ...


T = TypeVar("T", bound=Timed)


def started(make: Callable[[], T]) -> tuple[T, float]:
    """A contestant that has warmed up, and its peak memory in an iteration, MiB.

    On a GPU, the memory of other contestants in this process is not counted. On a CPU, it is the memory of the process.
    """
    free_memory()
    before = torch.cuda.memory_allocated() if on_gpu() else 0
    run = make()
    with run.around():
        for _ in range(run.warm_up):
            run.iteration()
        wait_for_gpu()
        if not on_gpu():
            return run, peak_mib()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        run.iteration()
        wait_for_gpu()
    own = held - before
    return run, (torch.cuda.max_memory_allocated() - held + own) / 2**20


class Attempts:
    """Several measurements of which one may fail without stopping the others. `end` reports those that have failed."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """The context of one measurement."""
        try:
            yield
        except Exception as error:
            words = f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            print(f"  failed: {words}", flush=True)
            self.failed.append(words)
        free_memory()

    def end(self) -> None:
        """
        Raises:
            SystemExit: a measurement has failed.
        """
        if self.failed:
            raise SystemExit("; ".join(self.failed))


def free_memory() -> None:
    """Free the GPU memory of contestants that no longer exist."""
    if on_gpu():
        gc.collect()
        torch.cuda.empty_cache()


def seconds_of(work: Callable[[], None], times: int) -> float:
    wait_for_gpu()
    start = time.perf_counter()
    for _ in range(times):
        work()
    wait_for_gpu()
    return time.perf_counter() - start


def milliseconds(work: Callable[[], None], seconds: float) -> float:
    """The time of one call of `work`, as the mean over about this many seconds."""
    times = max(1, round(seconds / seconds_of(work, 1)))
    return 1000 * seconds_of(work, times) / times


def take_turns(runs: dict[str, Timed], seconds: float, rounds: int) -> dict[str, list[float]]:
    """Milliseconds per iteration of each run in each round, in turns of about this many seconds. All have warmed up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        for name in runs if number % 2 else reversed(runs):
            with runs[name].around():
                times[name].append(milliseconds(runs[name].iteration, seconds))
    return times


def speed(images: int, ms: list[float]) -> dict[str, Any]:
    """The figures of iterations with this many real images."""
    return {"images/s": 1000 * images / statistics.median(ms), "ms an iteration": ms}


def steps(run: Timed, seconds: float) -> tuple[float, float]:
    """Milliseconds of the D step and of the G step on a batch that stays on the device."""
    with run.around():
        return milliseconds(run.d_step, seconds), milliseconds(run.g_step, seconds)


LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch")
MEASURED = "measured"  # the name that covers all measured work in the profile
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaDeviceSynchronize", "cudaMemcpy")


def kernels(run: Timed, work: Callable[[], None], times: int) -> dict[str, float]:
    """What torch's profiler sees when `work` is called `times` times, divided by `times`.

    `kernel ms`: the sum of all kernels and copies; `running ms`: the time in which at least one of them runs. Without a
    GPU, operations of the CPU are counted as kernels, and there are no launches and no waits.
    """
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu() else [])]
    with run.around():
        work()
        wait_for_gpu()
        with profile(activities=activities) as profiler:
            with record_function(MEASURED):
                for _ in range(times):
                    work()
            wait_for_gpu()
    # `profiler.events()` would take 20 times as long, which is minutes for R3GAN.
    everything = profiler.profiler.kineto_results.events()
    (all_work,) = (e for e in everything if e.name() == MEASURED and e.device_type() == DeviceType.CPU)
    events = [event for event in everything if not event.is_user_annotation()]
    operations = [event for event in events if event.name().startswith("aten::")]
    device = [event for event in events if event.device_type() == DeviceType.CUDA] if on_gpu() else operations
    copies = [event for event in device if event.name().startswith(("Memcpy", "Memset"))]
    waits = [event for event in events if event.name() in WAITS and event.start_ns() < all_work.end_ns()]
    running = _union([(event.start_ns(), event.end_ns()) for event in device])
    found = {
        "kernel ms": (sum(event.duration_ns() for event in device) if on_gpu() else running) / 1e6,
        "running ms": running / 1e6,
        "kernels": len(device) - len(copies),
        "copies": len(copies),
        "launches": sum(event.name().startswith(LAUNCHES) for event in events),
        "waits": len(waits),
        "operations": len(operations),
    }
    return {name: value / times for name, value in found.items()}


def _union(intervals: list[tuple[float, float]]) -> float:
    """The total time in which at least one of the intervals lasts."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total
