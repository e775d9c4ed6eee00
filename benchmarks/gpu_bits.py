"""The part `bits` of `benchmarks.gpu`: whether repeated and resumed runs of each recipe end with the same bits."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import gan_dist.wiring.build
from benchmarks.gpu_runs import CONFIGS, configure, distributed, precision_of, stand_in_data
from gan_dist.checkpoint.find import NETWORKS, OPTIMIZERS, find_checkpoint
from gan_dist.checkpoint.moments import flatten
from gan_dist.checkpoint.state import State
from gan_dist.data import DataInfo
from gan_dist.kernels.switches import numerics
from gan_dist.parallel.signals import StopSignals
from gan_dist.report.tracking import read_metrics
from gan_dist.settings.schema import Config

ITERATIONS, GROWING = 8, 24  # iterations of a run, and of a run that grows through up to six stages
LARGEST = 64  # largest batch size


class Compared(NamedTuple):
    """What differs, in words, between a run and its repetition up to the stop, and between it and the resumed run."""

    precision: str
    repeated: str
    resumed: str
    figures: str

    def equal(self) -> bool:
        return {self.repeated, self.resumed, self.figures} == {"equal"}


class Stop:
    """The last callback of a run: at `nimg` images it copies the state, and stops the run there if `stop` is true."""

    every_nimg, at_start, at_end = 1, False, False

    def __init__(self, nimg: int, stop: bool) -> None:
        self.nimg, self.stop = nimg, stop
        self.copy: dict[str, Tensor] = {}

    def __call__(self, state: State) -> None:
        if state.nimg == self.nimg:
            self.copy = copied(state)
            if self.stop:
                os.kill(os.getpid(), signal.SIGTERM)  # the active `StopSignals` receives it


def settings(name: str, tiny: bool) -> tuple[list[str], int]:
    """Settings of a short run of a recipe, and the number of images after which it is stopped.

    The run has D steps with a penalty and without one. A recipe that grows goes through all of its stages.
    """
    config, _ = configure(name, tiny=tiny)
    batch = config.train.batch_size
    if batch > LARGEST:
        batch = LARGEST // 2
    images = batch * config.train.n_critic
    growing = config.growth.stable_kimg > 0
    iterations = GROWING if growing else ITERATIONS
    own = [f"train.batch_size={batch}", f"train.kimg={iterations * images / 1000}", "loss.penalty_interval=3",
           f"log.every_kimg={2 * images / 1000}"]  # fmt: skip
    own += [f"train.micro_batch_size={batch // 2}"] if config.train.batch_size > LARGEST else []
    if growing:
        stage = f"{2 * images / 1000}"
        own += [f"growth.stable_kimg={stage}", f"growth.fade_kimg={stage}", "growth.batch_sizes=[]"]
    return own, iterations // 2 * images


def compare(name: str, tiny: bool) -> Compared:
    """Train a recipe once without a stop, and once with a stop and a resume; compare both."""
    own, nimg = settings(name, tiny)
    config, info = configure(name, own, tiny)
    precision = precision_of(config)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, stand_in_data():
        with numerics(precision, config.train.exact):
            whole, parts = Path(folder, "whole"), Path(folder, "parts")
            middle, end = train(config, info, whole, nimg, stop=False)
            stopped, _ = train(config, info, parts, nimg, stop=True)
            _, resumed = train(config, info, parts, nimg, stop=False)
        lines = [figures(run_dir) for run_dir in (whole, parts)]
    return Compared(precision, differing(middle, stopped), differing(end, resumed),
                    "equal" if lines[0] and lines[0] == lines[1] else "differ")  # fmt: skip


def train(
    config: Config, info: DataInfo, run_dir: Path, nimg: int, *, stop: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Train from the newest checkpoint, if there is one; return copies of the state at `nimg` images and at the end."""
    run_dir.mkdir(exist_ok=True)
    checkpoint = find_checkpoint(run_dir) if (run_dir / "checkpoints").exists() else None
    run = gan_dist.wiring.build.build(config, info, run_dir, checkpoint, distributed(config))
    with StopSignals() as signals:
        watch = Stop(nimg, stop)
        run.trainer.callbacks = [*run.trainer.callbacks, watch]
        if run.train(signals) == stop:
            raise RuntimeError("a run that was to be stopped went on" if stop else "a run was stopped")
    run.tracker.finish("stopped" if stop else "finished")
    return watch.copy, copied(run.state)


def copied(state: State) -> dict[str, Tensor]:
    """Copies of all weights, averages and moments."""
    found = {f"{of}.{name}": value for of in NETWORKS for name, value in getattr(state, of).state_dict().items()}
    found |= {f"{of}.{name}": value for of in OPTIMIZERS for name, value in flatten(getattr(state, of)).items()}
    return {name: tensor.detach().clone() for name, tensor in found.items()}


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> str:
    """`equal`, or how many tensors differ and the name of the first one."""
    if a.keys() != b.keys():
        return "other names"
    names = [name for name in a if not torch.equal(a[name].to(b[name].device), b[name])]
    return f"{len(names)} of {len(a)} tensors differ, the first {names[0]}" if names else "equal"


def figures(run_dir: Path) -> list[dict[str, Any]]:
    """The logged figures, without the speed."""
    lines = read_metrics(run_dir / "metrics.jsonl")
    return [
        {name: value for name, value in line.items() if name not in ("images_per_sec", "memory_gib")} for line in lines
    ]


def recipes() -> list[str]:
    """All recipes; those that take longest are last."""
    large = ["pggan_celeba", "r3gan_cifar10", "r3gan_ffhq64", "r3gan_ffhq256"]
    names = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    return sorted(names, key=lambda name: large.index(name) if name in large else -1)
