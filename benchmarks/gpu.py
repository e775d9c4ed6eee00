"""What only a GPU can show, in at most nine minutes: tests, bits, the official R3GAN and ours, kernels, memory.

    python -m benchmarks gpu data.root=DIR [--r3gan DIR] [--parts a,b] [--json FILE] [--tiny]

`data.root` is the directory of Fashion-MNIST, for the part `targets`; all other parts train on random images. `--r3gan`
is a copy of the official code (see `benchmarks.peers`). The command runs from a plain copy of this repository. Each row
is printed as soon as it is measured, and the report is written after each part. If the report already has other parts,
they stay in it. `--tiny` is for the tests: it uses tiny networks, also on a CPU, and its figures mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import statistics
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Any, NamedTuple

import torch

from benchmarks import arena, gpu_kernels, gpu_parts, peers
from benchmarks.gpu_measure import Goal, Row, Rows
from gan_dist.kernels.switches import reserve_workspace

ROOT = Path(__file__).parent.parent
TOTAL = 520.0  # seconds for all parts, without imports and the start of CUDA
ROOM = 3000  # MiB needed in the temporary directory, for the checkpoint of the largest recipe


class Part(NamedTuple):
    """`measure` takes the options of the command and yields rows. The part is cut off after `limit` seconds."""

    measure: Callable[[Namespace], Rows]
    limit: float
    timed: bool = True  # nothing else may run at the same time


# The most important parts come first.
PARTS = {
    "bits": Part(gpu_parts.bits, 100, timed=False),
    "tests": Part(gpu_parts.tests, 120, timed=False),
    "r3gan": Part(gpu_parts.r3gan, 200),
    "targets": Part(gpu_parts.targets, 240),
    "recipes": Part(gpu_kernels.recipes, 90),
    "penalties": Part(gpu_kernels.penalties, 70),
    "means": Part(gpu_kernels.means, 80),
    "plan": Part(gpu_parts.plan, 30),
}


# ----------------------------------------------------------------------------------------------------------------------
# What it needs


def needs(options: Namespace) -> Iterator[str]:
    """Yield lines on what the command needs and whether it is installed."""
    yield f"GPU: {torch.cuda.get_device_name() if torch.cuda.is_available() else 'none'}; needs one with 40 GiB"
    machine = arena.machine()
    packages = {name: machine[name] for name in ("torch", "torchvision", "accelerate", "torchmetrics")}
    yield "packages: the dependencies in pyproject.toml, here " + ", ".join(f"{k} {v}" for k, v in packages.items())
    yield f"for the part tests: the package pytest, which is {_there(find_spec('pytest'))}"
    compilers = ", ".join(f"{name} ({_there(shutil.which(name))})" for name in ("ninja", "nvcc", "c++"))
    yield f"for the official R3GAN: --r3gan DIR and on PATH {compilers}"
    copy = ("benchmarks", "configs", "gan_dist", "tests", "train.py", "pyproject.toml")
    yield f"files: this repository's {', '.join(copy)}: {sum(_mib(ROOT / name) for name in copy):.1f} MiB"
    for setting in options.settings:
        yield f"files: {setting}: Fashion-MNIST, {_mib(Path(setting.partition('=')[2])):.1f} MiB (29 wanted)"
    if options.r3gan:
        yield f"files: --r3gan {options.r3gan}: {_mib(options.r3gan):.1f} MiB"
    free = shutil.disk_usage(tempfile.gettempdir()).free / 2**20
    yield f"room: {ROOM} MiB in {tempfile.gettempdir()}, which has {free:.0f}; $TMPDIR names another directory"


def _there(found: Any) -> str:
    return "there" if found else "missing"


def _mib(path: Path) -> float:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file()) / 2**20


# ----------------------------------------------------------------------------------------------------------------------
# Running the parts


class CutOff(BaseException):
    """The time of a part is over. It is not an Exception, so that a part does not report it as a failed row."""


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Cut off the body after this many seconds and end the processes that it has started."""

    def cut_off(*_: Any) -> None:
        for child in multiprocessing.active_children():
            child.kill()
        raise CutOff

    before = signal.signal(signal.SIGALRM, cut_off)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_part(part: Part, options: Namespace, seconds: float) -> tuple[list[dict[str, Any]], str, bool]:
    """Run a part and print each row at once; return its rows, how it ended, in words, and whether it failed."""
    rows: list[dict[str, Any]] = []
    try:
        with limited(seconds):
            for row in part.measure(options):
                print(line(row), flush=True)
                rows.append(asdict(row) | {"goals": [goal._asdict() for goal in row.goals]})
    except CutOff:
        return rows, f"cut off after {seconds:.0f} s", False
    except (Exception, SystemExit) as error:
        return rows, f"failed: {type(error).__name__}: {' '.join(str(error).split())[:2000]}", True
    return rows, "complete", False


def line(row: Row) -> str:
    return f"  {row.name}: " + ", ".join(f"{name} {shown(value)}".strip() for name, value in row.figures.items())


def shown(value: Any) -> str:
    if isinstance(value, list):
        return arena.spread(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def start_background(options: Namespace, parts: list[str]) -> None:
    """Start the tests and the compilers of the official operations; both run during the parts that are not timed."""
    options.pytest, options.builds = None, {}
    if "tests" in parts:
        options.pytest = gpu_parts.start_tests(options.tiny)
    if {"r3gan", "targets"} & {*parts} and options.r3gan and torch.cuda.is_available():
        code = "import sys; from benchmarks.peers import build_operation; build_operation(*sys.argv[1:])"
        source = str(options.r3gan.resolve())
        options.builds = {name: gpu_parts.Background("-c", code, source, name) for name in peers.OPERATIONS}


def until_quiet(options: Namespace, seconds: float) -> None:
    """Wait until the compilers have ended; end those that take longer than `seconds`."""
    end = time.monotonic() + seconds
    for name, build in options.builds.items():
        if build.process.poll() is None:
            print(f"waiting until the official operation {name} is built", flush=True)
        try:
            build.wait(max(0.0, end - time.monotonic()))
        except TimeoutExpired:
            build.kill()


def run(options: Namespace, parts: list[str], report: dict[str, Any]) -> bool:
    """Run the parts one after the other; return False if one has failed."""
    began, good = time.monotonic(), True
    start_background(options, parts)
    try:
        for name in parts:
            part = PARTS[name]
            if part.timed:
                until_quiet(options, 150.0)
            start = time.monotonic()
            seconds = min(part.limit, TOTAL - (start - began))
            print(f"\n{name}: {(part.measure.__doc__ or '').strip()}", flush=True)
            rows, status, failed = run_part(part, options, seconds) if seconds > 0 else ([], "no time left", False)
            if name == "tests":
                options.pytest.kill()
            took = time.monotonic() - start
            print(f"  {status}, {took:.0f} s", flush=True)
            report["parts"][name] = {"rows": rows, "status": status, "seconds": took, **arena.machine()}
            arena.write(options.json, report)
            good &= not failed
    finally:
        for program in (options.pytest, *options.builds.values()):
            if program:
                program.kill()
    return good


# ----------------------------------------------------------------------------------------------------------------------
# The table


def table(report: dict[str, Any]) -> str:
    """A table of all goals of the report's rows, with a mark for each mode in which a goal was measured."""
    lines: dict[tuple[str, str], dict[str, Goal]] = {}
    for part in report["parts"].values():
        for goal in (Goal(**goal) for row in part["rows"] for goal in row["goals"]):
            lines.setdefault((goal.what, goal.measured_as), {})[goal.mode] = goal
    text = ["| what | measured as | wanted | exact | | faster mode | |", "|---|---|---|---|---|---|---|"]
    for (what, measured_as), modes in lines.items():
        any_mode = next(iter(modes.values()))
        cells = [cell for mode in ("exact", "faster") for cell in verdict(modes.get(mode))]
        wanted = f"{any_mode.sign} {any_mode.wanted:g}"
        text.append("| " + " | ".join([what, measured_as, wanted, *cells]) + " |")
    return "\n".join(text)


def verdict(goal: Goal | None) -> tuple[str, str]:
    """The measured value, and ✓ or ✗ by its median, rounded to two digits."""
    if goal is None:
        return "", ""
    middle = round(statistics.median(goal.values), 2)
    reached = middle >= goal.wanted if goal.sign == "≥" else middle <= goal.wanted
    return arena.spread(goal.values) if len(goal.values) > 1 else f"{middle:.2f}", "✓" if reached else "✗"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", help="data.root=DIR")
    parser.add_argument("--r3gan", type=Path, help="a copy of the official R3GAN")
    parser.add_argument("--parts", default=",".join(PARTS), help="which of them, in the order of the default")
    parser.add_argument("--json", type=Path, help="the report")
    parser.add_argument("--tiny", action="store_true", help="for the tests")
    options = parser.parse_intermixed_args()
    if unknown := {*options.parts.split(",")} - PARTS.keys():
        parser.error(f"--parts {', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}")
    reserve_workspace()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise the profiler prints a line when it starts and stops
    options.seconds, options.rounds = (0.01, 1) if options.tiny else (2.0, 3)
    print("\n".join(needs(options)), flush=True)
    if not (torch.cuda.is_available() or options.tiny):
        raise SystemExit("needs a GPU")
    report: dict[str, Any] = {"parts": {}}
    if options.json:
        with contextlib.suppress(FileNotFoundError):
            report["parts"] = json.loads(options.json.read_text())["parts"]
    options.rows_of = lambda name: report["parts"].get(name, {}).get("rows", [])
    good = run(options, [name for name in PARTS if name in options.parts.split(",")], report)
    print("\n" + table(report))
    raise SystemExit(not good)


if __name__ == "__main__":
    main()
