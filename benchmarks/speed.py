"""Images per second: the loop of tutorials, plain Accelerate, this package (compiled or not), the bare computation.

    python -m benchmarks speed [CONFIG.yaml] [--images N] [--rounds N] [--contestants a,b] [--processes 2] [--json FILE]
                               [key.sub=value …]

The networks are those of the config, which must be unconditional and on Fashion-MNIST. All contestants have the same
weights, batch size and precision. Before they are timed, the benchmark checks that all compute the same losses. The
package runs its complete Trainer: averaging, logging and grids every 10 kimg, checkpoints every 50 kimg, unless the
settings say otherwise.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from benchmarks import arena
from benchmarks.arena import Contestant, Entry

ROOT = Path(__file__).parent.parent
EVENTS = ["log.every_kimg=10", "sample.every_kimg=10", "checkpoint.every_kimg=50"]
CLASSES = {
    "textbook": "Textbook",
    "accelerate": "PlainAccelerate",
    "package": "Package",
    "compiled": "Package",
    "bound": "Bound",
    "graph": "Graph",
}


def entries(names: list[str], config: Path, settings: list[str], processes: int) -> list[Entry]:
    made = []
    for name in names:
        own = [*EVENTS, *settings] if CLASSES[name] == "Package" else settings
        own = [*own, "train.compile=true"] if name == "compiled" else own
        arguments: dict[str, Any] = {"config": str(config), "settings": own}
        made.append(Entry(name, f"benchmarks.contestants:{CLASSES[name]}", arguments, processes))
    return made


def measure(
    config: Path, settings: list[str], names: list[str], images: int, rounds: int, processes: int = 1
) -> dict[str, Any]:
    """Speeds of each contestant in each round, by name, the floor of `bound`, and memory.

    Raises:
        SystemExit: contestants compute different losses, or some of them cannot run on several processes.
    """
    if processes > 1 and (alone := {"textbook", "bound", "graph"} & {*names}):
        raise SystemExit(f"{' and '.join(sorted(alone))} run in one process: choose --contestants accelerate,package")
    cores = sorted(os.sched_getaffinity(0))
    contestants = [Contestant(entry, cores) for entry in entries(names, config, settings, processes)]
    try:
        losses = arena.check_agreement(contestants)
        speeds = arena.take_turns(contestants, images, rounds)
        floors = [c.ask("floor")[1][0] for c in contestants if c.name == "bound"]
        memory = {c.name: c.ask("memory")[1][0] for c in contestants if c.name in ("package", "bound")}
    finally:
        for contestant in contestants:
            contestant.close()
    return {"config": config.stem, "settings": settings, "processes": processes, "images": images, "losses": losses,
            "speeds": speeds, "floor": floors, "memory": memory}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", help="CONFIG.yaml and key.sub=value")
    parser.add_argument("--images", type=int, default=10_240, help="images per turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--contestants", default="textbook,accelerate,package,bound")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_intermixed_args()
    paths = [Path(text) for text in options.settings if "=" not in text] or [ROOT / "configs/mlp_fashion_mnist.yaml"]
    settings = [text for text in options.settings if "=" in text]
    names = options.contestants.split(",")
    report = measure(paths[0], settings, names, options.images, options.rounds, options.processes)
    print(arena.table(report["speeds"], [name for name in ("textbook", "accelerate", "bound") if name in names]))
    for floor in report["floor"]:
        print(f"{'counted operations at the rate of a matrix product':<34}{floor:>10.0f}")
    arena.write(options.json, report)


if __name__ == "__main__":
    main()
