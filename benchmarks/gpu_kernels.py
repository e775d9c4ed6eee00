"""Parts of `benchmarks.gpu` that look into an iteration: where its time goes, and how much each optimisation gives."""

from __future__ import annotations

import contextlib
import statistics
from argparse import Namespace
from typing import Any, NamedTuple

from benchmarks import gpu_bits
from benchmarks.gpu_measure import (
    MODES,
    Attempts,
    Goal,
    Row,
    Rows,
    free_memory,
    kernels,
    milliseconds,
    speed,
    started,
    steps,
    take_turns,
)
from benchmarks.gpu_runs import (
    CONFIGS,
    LAST_STAGE,
    Patch,
    Recipe,
    channels_last,
    configure,
    contiguous,
    groups_apart,
    operator_off,
    resampling_off,
    torchs_own,
)
from gan_dist.settings.config import load_config

PROFILED = {
    "MLP": "mlp_fashion_mnist",
    "DCGAN": "dcgan_fashion_mnist",
    "SNGAN": "sngan_fashion_mnist",
    "PGGAN's last stage": "pggan_fashion_mnist",
    "R3GAN small": "r3gan_fashion_mnist",
    "R3GAN CIFAR-10": "r3gan_cifar10",
}
PIECES = ["train.micro_batch_size=64"]  # pieces of the batch of 512; all pieces are the same work


def settings_of(config: str, tiny: bool) -> list[str]:
    """Settings to measure iterations: the last stage of a growing network, and batches that fit in memory."""
    return [*LAST_STAGE, *(PIECES if config == "r3gan_cifar10" and not tiny else [])]


def recipes(options: Namespace) -> Rows:
    """Where the time of an iteration goes, and how much memory it takes."""
    attempts = Attempts()
    for label, name in PROFILED.items():
        with attempts.of(label):
            config, info = configure(name, settings_of(name, options.tiny), options.tiny)
            run, mib = started(lambda config=config, info=info: Recipe(config, info))  # type: ignore[misc]
            ms = take_turns({label: run}, options.seconds, options.rounds)[label]
            d, g = steps(run, options.seconds / 4)
            seen = kernels(run, run.iteration, 1 if config.train.batch_size > 64 else 3)
            figures = {**speed(run.images, ms), "busy": seen["running ms"] / statistics.median(ms), **seen}
            yield Row(f"{label}, {run.precision}", {**figures, "D ms": d, "G ms": g, "MiB": mib})
            del run
    attempts.end()


def penalties(options: Namespace) -> Rows:
    """Kernel times of each recipe with a penalty in tf32, compared with torch's own operations."""
    attempts = Attempts()
    for name in _with_penalty()[:1] if options.tiny else _with_penalty():
        with attempts.of(name):
            yield _beside_torchs_own(name, options)
    attempts.end()


def _beside_torchs_own(name: str, options: Namespace) -> Row:
    """Measure an iteration of R3GAN for Fashion-MNIST, or the D step of another recipe."""
    small = name == "r3gan_fashion_mnist"
    own, _ = gpu_bits.settings(name, options.tiny)
    own = [*own, "loss.penalty_interval=1", *LAST_STAGE, "train.precision=tf32"]
    figures: dict[str, Any] = {}
    goals = []
    for mode, setting in MODES.items():
        ms = {}
        for of, patch in {"package": contextlib.nullcontext, "torch's own": torchs_own}.items():
            config, info = configure(name, [*own, *setting], options.tiny)
            run = Recipe(config, info, patch)
            ms[of] = kernels(run, run.iteration if small else run.d_step, 3)["kernel ms"]
            figures[f"{mode}, {of}: kernel ms"] = ms[of]
            if small and of == "package":
                with run.around():
                    figures[f"{mode}: images/s"] = 1000 * run.images / milliseconds(run.iteration, options.seconds)
            del run
            free_memory()
        goals.append(_goal(name, small, mode, ms["package"] / ms["torch's own"]))
    return Row(f"{name}, {'an iteration' if small else 'D step'}", figures, goals)


def _goal(name: str, small: bool, mode: str, ratio: float) -> Goal:
    if small:
        over = "kernel time of an iteration over that with torch's own operations (36.9 ms on an H100 before)"
        return Goal(f"R3GAN of `{name}`, tf32", over, "≤", 0.2, mode, [ratio])
    return Goal(f"`{name}`, tf32", "kernel time of the D step over that with torch's own operations", "≤", 1.0, mode,
                [ratio])  # fmt: skip


def _with_penalty() -> list[str]:
    """The recipes with a penalty; R3GAN for Fashion-MNIST is first."""
    found = []
    for name in gpu_bits.recipes():
        loss = load_config(CONFIGS / f"{name}.yaml").loss
        if loss.r1_gamma or loss.r2_gamma or loss.gradient_penalty:
            found.append(name)
    return sorted(found, key=lambda name: name != "r3gan_fashion_mnist")


class Mean(NamedTuple):
    """An optimisation: the settings and the patch that switch it on or off."""

    name: str
    settings: list[str]
    patch: Patch = contextlib.nullcontext
    recipes: tuple[str, ...] = ()  # the recipes for which it makes a difference; (): all


R3GANS = ("r3gan_fashion_mnist", "r3gan_cifar10")
PENALISED = (*R3GANS, "wgan_gp_fashion_mnist", "pggan_fashion_mnist")
MEANS = [
    Mean("as configured", []),
    Mean("torch's own second derivatives", [], operator_off, PENALISED),
    Mean("torch's own resampling", [], resampling_off, R3GANS),
    Mean("groups not joined", [], groups_apart, R3GANS),
    Mean("contiguous", [], contiguous),
    Mean("channels_last", [], channels_last),
    Mean("not exact", ["train.exact=false"]),
    Mean("fp32", ["train.precision=fp32"]),
    Mean("tf32", ["train.precision=tf32"]),
    Mean("bf16", ["train.precision=bf16"]),
    Mean("compiled", ["train.compile=true"]),  # last, because it takes long
]
MEASURED_WITH = {
    "R3GAN small": "r3gan_fashion_mnist",
    "R3GAN CIFAR-10, batch 64": "r3gan_cifar10",
    "WGAN-GP": "wgan_gp_fashion_mnist",
    "DCGAN": "dcgan_fashion_mnist",
    "PGGAN's last stage": "pggan_fashion_mnist",
    "SNGAN": "sngan_fashion_mnist",
}


def means(options: Namespace) -> Rows:
    """Each optimisation on and off, everything else as configured. Each gets one turn of half the length."""
    recipes = dict([*MEASURED_WITH.items()][: 1 if options.tiny else None])
    attempts = Attempts()
    for mean in MEANS[:6] if options.tiny else MEANS:
        for label, name in recipes.items():
            if mean.recipes and name not in mean.recipes:
                continue
            with attempts.of(f"{label}: {mean.name}"):
                own = [*LAST_STAGE, *([] if options.tiny else ["train.batch_size=64"]), *mean.settings]
                config, info = configure(name, own, options.tiny)
                run, mib = started(lambda c=config, i=info, p=mean.patch: Recipe(c, i, p))  # type: ignore[misc]
                with run.around():
                    ms = milliseconds(run.iteration, options.seconds / 2)
                seen = kernels(run, run.iteration, 1)
                figures = {
                    "ms an iteration": ms,
                    "kernel ms": seen["kernel ms"],
                    "kernels": seen["kernels"],
                    "MiB": mib,
                }
                yield Row(f"{label}, {run.precision}: {mean.name}", figures)
                del run
    attempts.end()
