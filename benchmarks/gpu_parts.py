"""Parts of `benchmarks.gpu`: tests, bits, the official R3GAN, the plan, the table of targets.

Each part yields its rows as soon as they are measured. `gpu_kernels` has the other parts.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_bits, peers
from benchmarks import targets as table
from benchmarks.gpu_kernels import PROFILED, settings_of
from benchmarks.gpu_measure import (
    Attempts,
    Goal,
    Row,
    Rows,
    free_memory,
    milliseconds,
    on_gpu,
    speed,
    started,
    steps,
    take_turns,
)
from benchmarks.gpu_runs import Recipe, configure, layers_by_type, precision_of
from gan_dist.parallel.accelerate_adapter import forget_state
from gan_dist.planning import plan as planning
from gan_dist.planning.counts import counter_of

ROOT = Path(__file__).parent.parent


class Background:
    """A program that runs at the same time as parts that are not timed. What it prints is kept."""

    def __init__(self, *arguments: str) -> None:
        self.output = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed together with this object)
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]  # so that this copy need not be installed
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stdout=self.output,
                                        stderr=subprocess.STDOUT, start_new_session=True, env=env)  # fmt: skip

    def wait(self, seconds: float | None = None) -> int:
        return self.process.wait(seconds)

    def printed(self) -> str:
        """Everything that it has printed so far; reading does not move the position at which it writes."""
        return os.pread(self.output.fileno(), 2**24, 0).decode(errors="replace")

    def last_lines(self, count: int) -> str:
        return " | ".join(line.strip() for line in self.printed().splitlines()[-count:])

    def kill(self) -> None:
        """End the program and the programs that it has started."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


# ----------------------------------------------------------------------------------------------------------------------
# tests

GPU_TESTS = [
    "tests/test_gpu.py",
    "tests/test_shared_gpu.py",
    "tests/test_group_of_one.py",
    "tests/test_precision.py::test_precision_reaches_every_product_of_a_step",
    "tests/test_precision.py::test_error_of_gradients_beside_fp64",
]
OUTCOME = re.compile(r"^(tests/\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED)", re.M)


def start_tests(tiny: bool) -> Background:
    """Start pytest in its own process, without the options that `pyproject.toml` sets for the whole suite."""
    chosen = ["-k", "never_waits" if tiny else "not same_bits"]  # the part `bits` tests the bits
    return Background("-m", "pytest", "-v", "-o", "addopts=", "-p", "no:cacheprovider", *GPU_TESTS, *chosen)


def tests(options: Namespace) -> Rows:
    """The tests that need a GPU, also those of two processes that share it; they run at the same time as `bits`."""
    shown = 0
    while True:
        status = options.pytest.process.poll()
        found = OUTCOME.findall(options.pytest.printed())
        for name, outcome in found[shown:]:
            yield Row(name, {"": outcome.lower()})
        shown = len(found)
        if status is not None:
            break
        time.sleep(0.5)
    if status:
        raise SystemExit(f"pytest ended with status {status}: {options.pytest.last_lines(3)}")


# ----------------------------------------------------------------------------------------------------------------------
# bits


def bits(options: Namespace) -> Rows:
    """Does each recipe give the same bits when it is repeated, and when it is stopped and resumed?"""
    names = ["digits", "pggan_fashion_mnist"] if options.tiny else gpu_bits.recipes()
    equal, attempts = 0, Attempts()
    for name in names:
        with attempts.of(name):
            found = gpu_bits.compare(name, options.tiny)
            equal += found.equal()
            precision, *words = found
            yield Row(f"{name}, {precision}", dict(zip(("repeated", "resumed", "logged figures"), words)))
    goal = Goal("recipes", "share whose repeated and resumed runs are equal", "≥", 1.0, "exact", [equal / len(names)])
    yield Row("all recipes", {"equal": equal, "of": len(names)}, [goal])
    attempts.end()


# ----------------------------------------------------------------------------------------------------------------------
# r3gan

# Micro-batches of the batch of 512, the settings of the package in turn, and how much faster than the official code the
# compiled steps are to be.
BESIDE_OFFICIAL = [
    (64, {"": [], ", compiled": ["train.compile=true"]}, 5.0),
    (256, {", compiled": ["train.compile=true"]}, 3.0),
]


def r3gan(options: Namespace) -> Rows:
    """The official R3GAN and the package's, without classes, in turns; then the unchanged config, with classes."""
    failure = ""
    if options.r3gan:
        for micro, ways, wanted in BESIDE_OFFICIAL:
            failure = failure or (yield from _beside_official(options, micro, ways, wanted))
            free_memory()
    else:
        yield Row("official", {"": "needs --r3gan DIR, a copy of its code"})
    config, info = configure("r3gan_cifar10", tiny=options.tiny)
    try:
        run, mib = started(lambda: Recipe(config, info))
    except torch.OutOfMemoryError:
        yield Row("configs/r3gan_cifar10.yaml as it is, conditional", {"": "the GPU's memory is full"})
    else:
        ms = take_turns({"": run}, options.seconds, options.rounds)[""]
        name = f"configs/r3gan_cifar10.yaml as it is, conditional, {run.precision}: in D's step {layers_by_type(run)}"
        yield Row(name, speed(run.images, ms) | {"MiB": mib})
    if failure:
        raise SystemExit(failure)


def _beside_official(
    options: Namespace, micro: int, ways: dict[str, list[str]], wanted: float
) -> Generator[Row, None, str]:
    """Return why it could not be measured, or an empty text."""
    for name, build in options.builds.items():
        if build.process.poll() != 0:
            return f"the official operation {name} was not built: {build.last_lines(3)}"
    cifar = f"R3GAN for CIFAR-10, bf16, batch 512 in micro-batches of {micro}"
    sizes = (32, 4, 2) if options.tiny else (768, 512, micro)  # channels, batch, micro-batch
    official, official_mib = started(lambda: peers.OfficialR3GAN(str(options.r3gan.resolve()), *sizes))
    types = "all layers in bf16 but the stages of 4x4 pixels, which are in IEEE fp32" if on_gpu() else "fp32"
    first = f"official, micro-batches of {micro}, {types}"
    runs: dict[str, Any] = {first: official}
    mib = {first: official_mib}
    for way, setting in ways.items():
        own = ["train.precision=bf16", f"train.batch_size={sizes[1]}", f"train.micro_batch_size={sizes[2]}"]
        config, info = configure("r3gan_cifar10", [*own, "model.conditional=false", *setting], options.tiny)
        run, most = started(lambda config=config, info=info: Recipe(config, info))  # type: ignore[misc]
        name = f"package{way}, micro-batches of {micro}, {run.precision} by autocast: in D's step {layers_by_type(run)}"
        runs[name], mib[name] = run, most
    times = take_turns(runs, options.seconds, options.rounds)
    for name, ms in times.items():
        d, g = steps(runs[name], options.seconds)
        figures = {**speed(runs[name].images, ms), "D ms": d, "G ms": g, "MiB": mib[name]}
        goals = []
        if "compiled" in name:
            over = [a / b for a, b in zip(times[first], ms)]
            memory = mib[name] / mib[first]
            goals = [
                Goal(f"{cifar}, compiled", "images/s over the official code", "≥", wanted, "exact", over),
                Goal(f"{cifar}, compiled", "time of the D step over the G step", "≤", 2.5, "exact", [d / g]),
                Goal(f"{cifar}, compiled", "peak memory over the official code's", "≤", 1.3, "exact", [memory]),
            ]
        yield Row(name, figures, goals)
    return ""


# ----------------------------------------------------------------------------------------------------------------------
# plan, targets


def plan(options: Namespace) -> Rows:
    """What `gan-dist plan` expects with the rates of this machine, and what was measured."""
    known = {row["name"].rpartition(",")[0]: row["figures"] for row in options.rows_of("recipes")}
    rates = planning.measured_rates()
    for label, name in [*PROFILED.items()][: 1 if options.tiny else None]:
        config, info = configure(name, settings_of(name, options.tiny), options.tiny)
        if label in known:
            ms, mib = statistics.median(known[label]["ms an iteration"]), known[label]["MiB"]
        else:
            run, mib = started(lambda config=config, info=info: Recipe(config, info))  # type: ignore[misc]
            with run.around():
                ms = milliseconds(run.iteration, options.seconds)
            del run
            free_memory()
        pieces = max(1, config.train.batch_size // (config.train.micro_batch_size or config.train.batch_size))
        precision: Any = precision_of(config)
        batch_size = config.train.batch_size // pieces
        piece = replace(config.train, batch_size=batch_size, micro_batch_size=0, precision=precision)
        forget_state()
        settings = replace(config, train=piece)
        expected = planning.plan(settings, info, 1, rates, counter_of(settings, info))
        expected_ms = 1000 * pieces * expected.compute
        yield Row(label, {"expected ms": expected_ms, "measured ms": ms, "measured over expected": ms / expected_ms,
                          "expected MiB": expected.memory / 2**20, "measured MiB": mib})  # fmt: skip


def targets(options: Namespace) -> Rows:
    """The rows of `benchmarks.targets` that need a GPU. The row that the part `r3gan` also measures comes last."""
    free_memory()
    names = [name for name in table.ROWS if name.startswith("gpu_")]
    for name in sorted(names, key=lambda name: name == "gpu_r3gan"):
        row = table.ROWS[name]
        try:
            values, _ = row.measure(options)
        except table.Needs as why:
            yield Row(row.what, {"": str(why)})
            continue
        goal = Goal(row.what, row.measured_as, row.sign, row.wanted, "exact", values)
        yield Row(row.what, {row.measured_as: values}, [goal])
