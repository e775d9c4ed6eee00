"""The script that `test_distributed.py` runs in 1, 2 and 4 processes: `distributed_worker.py FOLDER`.

Rank 0 writes `FOLDER/<job>.safetensors` and `FOLDER/results.json`.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from conftest import DISTINCT, OF_EACH_ARCHITECTURE, load_recipe, make_images, mixes_samples, recipe_file
from safetensors.torch import save_file
from torch import Tensor

from gan_dist.checkpoint.moments import flatten
from gan_dist.data.datasets import describe
from gan_dist.data.points import POINTS
from gan_dist.game.losses import LOSSES
from gan_dist.models import Growing
from gan_dist.parallel.accelerate_adapter import forget_state
from gan_dist.parallel.distributed import Distributed
from gan_dist.parallel.signals import StopSignals
from gan_dist.settings.config import load_config
from gan_dist.wiring.build import WiredRun, build
from gan_dist.wiring.data import source_of
from gan_dist.wiring.networks import make_state

SHARED_GPU = os.environ.get("GAN_DIST_TEST_SHARED_GPU") == "1"
# NCCL refuses two processes on one GPU.
CPU = torch.cuda.device_count() < (1 if SHARED_GPU else int(os.environ.get("WORLD_SIZE", "1")))
BATCH_SIZE = 16
ITERATIONS = 6  # three D steps with a penalty, all stages of a growing network, three times through the images
QUIET = [
    f"train.batch_size={BATCH_SIZE}", "log.every_kimg=0",
    "sample.every_kimg=0", "metrics.every_kimg=0", "checkpoint.every_kimg=0", "tracking.wandb=disabled",
]  # fmt: skip
PENALTIES = {
    "R1": ["loss.r1_gamma=1"],
    "lazy R1": ["loss.r1_gamma=1", "loss.penalty_interval=2"],
    "R1 and R2": ["loss.r1_gamma=1", "loss.r2_gamma=1"],
    "clipping": ["loss.r1_gamma=0", "loss.clip_weights=0.01"],
    "WGAN-GP": ["loss.r1_gamma=0", "loss.gradient_penalty=10"],
}
# Every loss with one penalty and every penalty with one loss; and with these, in turn, micro-batches and n_critic.
WIRE = [(loss, "R1") for loss in sorted(LOSSES)] + [
    ("relativistic", penalty) for penalty in PENALTIES if penalty != "R1"
]
WIRE_STEPS = list(itertools.product((0, 2), (1, 3)))
# Recipes whose losses are compiled on two processes: those without batch normalization; and with penalties, R1 in
# micro-batches, R1 and R2, WGAN-GP's, while a network grows. `test_compile.py` compares them on one process.
COMPILED = ["digits", "r3gan_cifar10", "grid_wgan_gp", "pggan_celeba"]
# Where four processes would show what two do not: all that differs between them is how a batch is cut.
IN_FOUR = [*OF_EACH_ARCHITECTURE.values(), "wgan_gp_fashion_mnist", "ring_rpgan"]
SEEDS = (0, 1)  # of first gradients in single precision


class Jobs:
    def __init__(self, folder: Path, digits: bool = False) -> None:
        self.digits = digits  # instead of noise, of which G's gradients cancel out to the rounding of fp32
        self.folder, self.nimg = folder, BATCH_SIZE * ITERATIONS
        self.results: dict[str, Any] = {}
        self.images = folder / f"images{os.environ.get('RANK', '')}"  # the same ones for each process
        make_images(self.images)

    def noise(self, recipe: str) -> list[str]:
        """Settings for images that are soon read and soon seen through."""
        images = [f"data.root={self.images}", "data.name=folder", "data.class_folders=true"]
        return [] if self.digits or recipe_file(recipe).data.name in POINTS else images

    def build(self, dist: Distributed, recipe: str, *overrides: str, through_all_stages: bool = False) -> WiredRun:
        config = load_recipe(recipe, *QUIET, f"train.kimg={self.nimg / 1000}", *overrides)
        if config.growth.stable_kimg and through_all_stages:
            config.growth.stable_kimg = config.growth.fade_kimg = BATCH_SIZE / 1000
        folder = self.folder / "run"
        folder.mkdir(exist_ok=True)
        return build(config, describe(source_of(config.data)), folder, None, dist)

    def save(self, dist: Distributed, name: str, tensors: dict[str, Tensor]) -> None:
        """Keep rank 0's tensors, and whether all ranks have the same bits."""
        flat = torch.cat([tensor.double().flatten() for tensor in tensors.values()])
        every = dist.gather(flat[None])
        self.results[f"{name}: ranks agree"] = bool((every == every[:1]).all())
        if dist.is_main:
            save_file({k: v.contiguous() for k, v in tensors.items()}, self.folder / f"{name}.safetensors")

    def train(self, dist: Distributed, name: str, recipe: str, *overrides: str) -> None:
        """The whole loop, with a schedule, flips and a lazy penalty, all functions of images seen."""
        common = ["optim.G.schedule=cosine", "optim.D.warmup_kimg=0.04", "loss.penalty_interval=2"]
        if recipe_file(recipe).data.name not in POINTS:
            common.append("data.hflip=true")
        run = self.build(dist, recipe, *self.noise(recipe), *common, *overrides, through_all_stages=True)
        run.train(StopSignals())
        state = run.state
        assert (run.trainer.step.update_G.compiled is not None) == ("train.compile=true" in overrides), "not given up"
        assert state.nimg >= self.nimg
        self.results[f"{name}: figures"] = run.trainer.step.stats.read()
        if isinstance(state.G, Growing):
            assert state.G.stage == state.G.last_stage
        tensors = {}
        for part in ("G", "D", "G_ema"):
            tensors |= {f"{part}.{k}": v for k, v in getattr(state, part).state_dict().items()}
        for part in ("opt_G", "opt_D"):
            tensors |= {f"{part}.{k}": v for k, v in flatten(getattr(state, part)).items()}
        self.save(dist, name, tensors)

    def gradients(self, dist: Distributed, name: str, recipe: str, *overrides: str) -> None:
        """Of D and of G, each at the initial weights."""
        tensors = {}
        for part in ("D", "G"):
            trainer = self.build(dist, recipe, *overrides).trainer
            step, (images, labels) = trainer.step, next(trainer.batches)
            if part == "D":
                step.d_step(images, labels)
            else:
                step.g_step(step.draws.to_float(images, dist.dtype), step.draws.labels_of(labels))
            for key, parameter in getattr(trainer.state, part).named_parameters():
                if parameter.grad is not None:  # a growing network does without some
                    tensors[f"{part}.{key}"] = parameter.grad
        self.save(dist, name, tensors)

    def wire(self, dist: Distributed, recipe: str, *overrides: str, nimg: int = 0) -> dict[str, Any]:
        """Bytes that D's and G's wrappers reduce in two iterations from `nimg` on, and those of everything."""
        run = self.build(dist, recipe, *self.noise(recipe), *overrides)
        step = run.trainer.step
        run.state.nimg = nimg
        step.growth.advance()
        sent = {"G": 0, "D": 0}
        sizes = {k: sum(p.nbytes for p in getattr(run.state, k).parameters() if p.requires_grad) for k in sent}
        with _counted_all_reduces() as total:
            for part in sent:
                getattr(step.wrapped, part).wrapper.register_comm_hook(None, _recorder(sent, part))
            for _ in range(2):
                step(run.trainer.batches)
        run.trainer.batches.close()
        return {
            "sent": sent,
            "sizes": sizes,
            "total": total[0],
            "n_critic": step.game.n_critic,
            "said": run.summary[-1],
        }

    def compiled(self, dist: Distributed) -> None:
        """Runs whose losses are traced; without a compiler, which would take long, the traces run as they are."""
        before, torch.compile = torch.compile, lambda graph, **_: graph  # type: ignore[assignment]
        for recipe in COMPILED if dist.several else ():
            split = [] if mixes_samples(recipe) else ["train.micro_batch_size=2"]
            self.train(dist, f"compiled-{recipe}", recipe, "train.compile=true", *split)
        step = self.build(dist, "dcgan_fashion_mnist", "train.compile=true").trainer.step
        self.results["batch normalization is compiled"] = step.update_D.compiled is not None
        if dist.world_size == 2:
            self.results["wire of compiled steps"] = [
                self.wire(dist, "digits", *settings, "train.compile=true", "train.micro_batch_size=2")
                for settings in PENALTIES.values()
            ]
        torch.compile = before  # type: ignore[assignment]

    def started(self, dist: Distributed) -> None:
        """A run that starts from the weights of another run, with a frozen block of D."""
        source = self.folder / "source"
        source.mkdir(exist_ok=True)
        config = load_recipe("digits", *QUIET, "train.seed=1")
        run = build(config, describe(source_of(config.data)), source, None, dist)
        dist.from_main(lambda: run.save.now(run.state))
        own = [f"init.run={source}", "init.freeze_D=1"]
        self.train(dist, "started-digits", "digits", *own)
        if dist.world_size == 2:
            all_of_D = sum(p.nbytes for p in run.state.D.parameters())
            self.results["wire of a frozen D"] = {**self.wire(dist, "digits", *own), "all of D": all_of_D}

    def wires(self, dist: Distributed) -> None:
        """For every loss and penalty, micro-batches and n_critic; and for every recipe."""
        self.results["wire"] = [
            self.wire(
                dist, "digits", f"loss.name={loss}", *PENALTIES[penalty],
                f"train.micro_batch_size={micro}", f"train.n_critic={n_critic}",
            )
            for (loss, penalty), (micro, n_critic) in zip(WIRE, itertools.cycle(WIRE_STEPS))
        ]  # fmt: skip
        self.results["wire of recipes"] = {recipe: self.wire(dist, recipe) for recipe in DISTINCT}
        fading = "pggan_celeba while a stage fades in"
        self.results["wire of recipes"][fading] = self.wire(dist, "pggan_celeba", nimg=40)

    def metrics(self, dist: Distributed) -> None:
        """Of an untrained generator, by the evaluator that a run is wired with."""
        measured = ["metrics.every_kimg=1", "metrics.num_images=1003"]
        run = self.build(dist, "digits", *measured, "metrics.batch_size=100")
        (evaluate,) = (c for c in run.trainer.callbacks if hasattr(c, "evaluator"))
        self.results["metrics"] = evaluate.evaluator(run.state.G_ema)
        points = self.build(dist, "ring_rpgan", *measured)
        (of_points,) = (c for c in points.trainer.callbacks if hasattr(c, "evaluator"))
        self.results["metrics of points"] = of_points.evaluator(points.state.G_ema)
        self.results["evaluated"] = {"fake": evaluate.evaluator.num_images, "real": len(evaluate.evaluator.real)}

    def compressed(self) -> None:
        dist = Distributed("fp32", cpu=CPU, compress=True)
        self.gradients(dist, "compressed", "digits")

    def mixed(self) -> None:
        forget_state()
        dist = Distributed("bf16", cpu=CPU)
        self.gradients(dist, "mixed", "digits", "loss.r1_gamma=10", "loss.r2_gamma=10", "loss.gradient_penalty=10")
        config = load_config(None, QUIET)
        state = make_state(config, describe(source_of(config.data)), dist)
        self.results["mixed: weights"] = str(next(state.G.parameters()).dtype)


def _recorder(sent: dict[str, int], part: str) -> Callable[..., Any]:
    """A communication hook that averages as DDP does, and counts."""

    def hook(_, bucket):  # torch compares annotations, which must not be strings
        buffer = bucket.buffer().div_(torch.distributed.get_world_size())
        sent[part] += buffer.nbytes
        work = torch.distributed.all_reduce(buffer, async_op=True)
        return work.get_future().then(lambda future: future.value()[0])

    return hook


class _counted_all_reduces:
    """Inside, counts the bytes of every all-reduce that Python asks for."""

    def __enter__(self) -> list[int]:
        total = [0]
        self.before = torch.distributed.all_reduce

        def counting(tensor: Tensor, *arguments: Any, **named: Any) -> Any:
            total[0] += tensor.nbytes
            return self.before(tensor, *arguments, **named)

        torch.distributed.all_reduce = counting
        return total

    def __exit__(self, *_: object) -> None:
        torch.distributed.all_reduce = self.before


def main() -> None:
    folder = Path(sys.argv[1])
    jobs = Jobs(folder)
    dist = Distributed("fp64", cpu=CPU)
    for recipe in IN_FOUR if dist.world_size == 4 else DISTINCT:
        jobs.train(dist, f"train-{recipe}", recipe)
        if not mixes_samples(recipe):
            jobs.train(dist, f"split-{recipe}", recipe, "train.micro_batch_size=2")
    if dist.world_size < 4:
        jobs.compiled(dist)
        jobs.started(dist)
    dist = Distributed("fp32", cpu=CPU)
    for recipe, seed in itertools.product(OF_EACH_ARCHITECTURE.values(), SEEDS):
        jobs.gradients(dist, f"gradients-{recipe}-{seed}", recipe, f"train.seed={seed}")
    jobs.gradients(dist, "gradients-default", "digits")
    if dist.world_size == 2:
        jobs.wires(dist)
    jobs.metrics(dist)
    jobs.compressed()
    jobs.mixed()
    if dist.is_main:
        (folder / "results.json").write_text(json.dumps(jobs.results))
    dist.end()


if __name__ == "__main__":
    main()
