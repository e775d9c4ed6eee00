"""Where the time of an iteration goes: operations of the package's complete Trainer and of the bare computation.

    python -m benchmarks profile [CONFIG.yaml] [--iterations 40] [--json FILE] [key.sub=value …]

The table has milliseconds per iteration that each operation takes itself, measured by torch's profiler. The profiler
also takes time. The rest of the wall time is Python. Both contestants run one after the other in one process.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import arena
from benchmarks.contestants import Bound, Package
from benchmarks.speed import EVENTS

ROOT = Path(__file__).parent.parent


def measure(contestant: Any, batch: int, iterations: int) -> dict[str, float]:
    """Milliseconds per iteration: of each operation, and of the whole iteration (`wall`)."""
    found = {}

    def turns() -> Iterator[int]:
        yield 10 * batch
        start = time.perf_counter()
        yield iterations * batch
        found["wall"] = (time.perf_counter() - start) / iterations * 1000
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            yield iterations * batch
        for operation in profiler.key_averages():
            found[operation.key] = operation.self_cpu_time_total / iterations / 1000

    contestant.train(turns())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", help="CONFIG.yaml and key.sub=value")
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--json", type=Path)
    options = parser.parse_intermixed_args()
    path = next((text for text in options.settings if "=" not in text), str(ROOT / "configs/mlp_fashion_mnist.yaml"))
    settings = [*(text for text in options.settings if "=" in text), "train.device=cpu"]
    bound, package = Bound(path, settings), Package(path, [*EVENTS, *settings])
    batch = package.config.train.batch_size
    found = {"package": measure(package, batch, options.iterations), "bound": measure(bound, batch, options.iterations)}
    print(f"{torch.get_num_threads()} threads, milliseconds an iteration\n")
    print("| operation | package | bound |\n|---|---|---|")
    shown = [name for name, ms in found["package"].items() if ms >= 0.01 * found["package"]["wall"] and name != "wall"]
    rows = ["wall", *sorted(shown, key=lambda name: -found["package"][name])]
    for name in rows:
        label = "whole iteration, without the profiler" if name == "wall" else f"`{name}`"
        print(f"| {label} | {found['package'][name]:.2f} | {found['bound'].get(name, 0.0):.2f} |")
    rest = {who: sum(ms for name, ms in times.items() if name not in rows) for who, times in found.items()}
    print(f"| all other operations | {rest['package']:.2f} | {rest['bound']:.2f} |")
    arena.write(options.json, {"config": Path(path).stem, "settings": settings, "ms": found})


if __name__ == "__main__":
    main()
