"""What `test_group_of_one.py` starts with torchrun: `group_of_one_worker.py FOLDER`, with GAN_DIST_TEST_GROUP_OF_ONE=1.

It makes the same runs twice: in a plain process, which writes `FOLDER/plain-<recipe>.safetensors`, and in a process
group of one process, which writes `FOLDER/group-<recipe>.safetensors`. `FOLDER/results.json` lists the collectives that
each part of a run calls.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from conftest import OF_EACH_ARCHITECTURE, mixes_samples
from distributed_worker import CPU, Jobs

from gan_dist.parallel.accelerate_adapter import forget_state
from gan_dist.parallel.distributed import Distributed
from gan_dist.parallel.signals import StopSignals
from gan_dist.parallel.stop import STOP_LAG, StopAgreement

LAUNCHED = ("LOCAL_RANK", "GAN_DIST_TEST_GROUP_OF_ONE")
RECIPES = [*OF_EACH_ARCHITECTURE.values(), "wgan_gp_fashion_mnist"]


def collectives(act: Callable[[], Any]) -> dict[str, int]:
    """How often an action has called each, DDP's own in C++ included, as the profiler sees them."""
    with torch.autograd.profiler.profile() as profile:
        act()
    return Counter(event.name for event in profile.function_events if event.name.startswith("c10d::"))


def look(jobs: Jobs, dist: Distributed) -> dict[str, Any]:
    """What the parts of a run on several processes call, in a run with R1 and micro-batches."""
    run = jobs.build(dist, "digits", "loss.r1_gamma=1", "train.micro_batch_size=4")
    step, batches = run.trainer.step, run.trainer.batches
    step(batches)  # DDP sorts its buckets before the second one
    step(batches)
    found: dict[str, Any] = {
        "step": collectives(lambda: step(batches)),
        "figures": collectives(step.stats.read),
        "gather": collectives(lambda: dist.gather(torch.ones(3, 2))),
        "from main": collectives(lambda: dist.from_main(lambda: 1)),
    }
    batches.close()
    with StopSignals() as signals:
        stop = StopAgreement(dist, signals)
        found["stop"] = collectives(stop)
        os.kill(os.getpid(), signal.SIGTERM)
        found["answers after a signal"] = [stop() for _ in range(STOP_LAG + 1)]
    found["wrapped"] = [type(network).__name__ for network in (step.wrapped.G.wrapper, step.wrapped.D.wrapper)]
    found["batch norm"] = type(next(_norms(jobs, dist))).__name__
    return found


def _norms(jobs: Jobs, dist: Distributed) -> Any:
    modules = jobs.build(dist, "dcgan_fashion_mnist").state.G.modules()
    return (module for module in modules if isinstance(module, torch.nn.BatchNorm2d))


def main() -> None:
    folder = Path(sys.argv[1])
    jobs = Jobs(folder)
    launched = {name: os.environ.pop(name) for name in LAUNCHED}
    for name, environment in (("plain", {}), ("group", launched)):
        os.environ.update(environment)
        forget_state()
        dist = Distributed("fp64", cpu=CPU)
        for recipe in RECIPES:
            split = [] if mixes_samples(recipe) else ["train.micro_batch_size=4"]
            jobs.train(dist, f"{name}-{recipe}", recipe, *split)
        jobs.results[name] = {**look(jobs, dist), "world": [dist.several, dist.world_size, dist.backend]}
    (folder / "results.json").write_text(json.dumps(jobs.results))
    dist.end()


if __name__ == "__main__":
    main()
