"""The recipes that the parts of `benchmarks.gpu` train, with each optimisation, or with torch's own operations.

They train on random images of the recipe's shape, so that no data set is needed.
"""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gan_dist.wiring.build
from benchmarks.contestants import QUIET
from benchmarks.gpu_measure import on_gpu
from gan_dist.data import DataInfo, Source
from gan_dist.data.datasets import describe, load_dataset
from gan_dist.data.in_memory import Images, ImageTensor
from gan_dist.data.points import POINTS
from gan_dist.engine.graphs import WARM_UP
from gan_dist.kernels import convolution, layout
from gan_dist.kernels.switches import numerics
from gan_dist.models import r3gan
from gan_dist.parallel.accelerate_adapter import forget_state
from gan_dist.parallel.distributed import Distributed
from gan_dist.settings.config import load_config
from gan_dist.settings.precision import resolve
from gan_dist.settings.schema import Config
from gan_dist.wiring.data import source_of

CONFIGS = Path(__file__).parent.parent / "configs"
EVENTLESS = ["log.every_kimg=0", "sample.every_kimg=0", "checkpoint.every_kimg=0"]
LAST_STAGE = ["growth.stable_kimg=0", "growth.fade_kimg=0", "growth.batch_sizes=[]"]  # for a recipe that grows
STAND_INS = 2048  # random images that stand in for a data set
# Settings that make the networks of each architecture tiny, for images of 16 pixels.
TINY = {
    "mlp": ["model.g_widths=[16]", "model.d_widths=[16]"],
    "dcgan": ["model.g_widths=[8,4]", "model.d_widths=[4,8]"],
    "sngan": ["model.g_widths=[8,8,4]", "model.d_widths=[4,8,8,8]"],
    "pggan": ["model.g_widths=[8,8,4]", "model.d_widths=[4,8,8]"],
    "r3gan": [
        *("model.g_widths=[8,8,4]", "model.d_widths=[4,8,8]"),
        *("model.g_args={blocks: 1, group_size: 4}", "model.d_args={blocks: 1, group_size: 4}"),
    ],
}
Patch = Callable[[], AbstractContextManager[Any]]


# ----------------------------------------------------------------------------------------------------------------------
# Recipes


def configure(name: str, settings: Sequence[str] = (), tiny: bool = False) -> tuple[Config, DataInfo]:
    """A file of `configs/` with these settings, and what its data are like. `tiny` gives tiny networks and images."""
    path = CONFIGS / f"{name}.yaml"
    recipe = load_config(path)
    own = [*QUIET, *EVENTLESS]
    own += [] if recipe.train.batch_size else ["train.batch_size=64"]
    if tiny:
        own += [*TINY[recipe.model.name], "model.z_dim=8", "train.batch_size=8"]
        own += [] if recipe.data.name in POINTS else ["data.image_size=16"]
        own += [f"model.{side}_args={{attention: 8}}" for side in "gd" if "attention" in recipe.model.g_args]
        own += [f"model.{side}_args={{tanh: false}}" for side in "g" if recipe.data.name in POINTS]
    config = load_config(path, [*own, *settings])
    # The folder need not exist: its images have the shape of CelebA's, and no classes.
    data = replace(config.data, name="CelebA") if config.data.name == "folder" else config.data
    info = describe(source_of(data))
    return config, info if data.name in POINTS else replace(info, num_images=STAND_INS)


def precision_of(config: Config) -> str:
    return resolve(config.train, on_gpu())


def distributed(config: Config) -> Distributed:
    """The `Distributed` of a run, in a process that may have had other runs before."""
    forget_state()
    train = config.train
    return Distributed(precision_of(config), not on_gpu(), train.compress_gradients)


@functools.cache
def random_images(shape: tuple[int, int, int]) -> Tensor:
    return torch.randint(0, 256, (STAND_INS, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def stand_in_data() -> AbstractContextManager[Any]:
    """Within it, runs are built on random images instead of their data set. Data sets of points are not replaced."""

    def load(source: Source, info: DataInfo, *_: Any) -> tuple[Images, str]:
        if source.name in POINTS:
            return load_dataset(source, info), "points"
        labels = torch.arange(STAND_INS) % max(1, info.num_classes)
        return ImageTensor(random_images(info.image_shape), labels), "random"

    return mock.patch.object(gan_dist.wiring.build, "load_shared", load)


def torchs_own() -> AbstractContextManager[Any]:
    """Within it, none of the GPU optimisations of `gan_dist.kernels` is used."""
    stack = ExitStack()
    for patch in (operator_off, resampling_off, groups_apart, contiguous):
        stack.enter_context(patch())
    return stack


def operator_off() -> AbstractContextManager[Any]:
    """Within it, second derivatives of convolutions are torch's own; the memory layout is the package's."""
    return mock.patch.object(convolution, "twice_differentiable", contextlib.nullcontext)


def resampling_off() -> AbstractContextManager[Any]:
    """Within it, R3GAN halves and doubles feature maps by torch's depthwise convolutions."""

    def row(x: Tensor, total: float) -> Tensor:
        values = 4 - 2 * (torch.arange(4, dtype=x.dtype, device=x.device) - 1.5).abs()  # 1, 3, 3, 1
        return (values[:, None] * values * (total / 64)).expand(x.shape[1], 1, 4, 4)

    def halve(x: Tensor) -> Tensor:
        return F.conv2d(x, row(x, 1.0), stride=2, padding=1, groups=x.shape[1])

    def double(x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, row(x, 4.0), stride=2, padding=1, groups=x.shape[1])

    return mock.patch.multiple(r3gan, halve=halve, double=double)


def groups_apart() -> AbstractContextManager[Any]:
    """Within it, groups of convolutions are computed separately, not two as one."""
    return mock.patch.object(layout, "join_groups")


def contiguous() -> AbstractContextManager[Any]:
    """Within it, networks are built in torch's default memory layout."""
    return mock.patch.object(layout, "use_channels_last", return_value=False)


def channels_last() -> AbstractContextManager[Any]:
    """Within it, all networks are built in channels_last."""
    return mock.patch.object(layout, "use_channels_last", return_value=True)


class Recipe:
    """A run of this package, one iteration at a time: the Trainer's loop without logging, grids and checkpoints.

    `d_step` and `g_step` run on one batch that stays on the device.
    """

    def __init__(self, config: Config, info: DataInfo, patch: Patch = contextlib.nullcontext) -> None:
        self.config, self.patch = config, patch
        self.precision = precision_of(config)
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        with self.around(), stand_in_data():
            run = gan_dist.wiring.build.build(config, info, Path(self._folder.name), None, distributed(config))
        self.trainer = run.trainer
        self.warm_up = WARM_UP + 2 if run.trainer.step.graphs else 2  # iterations before it is measured
        self.images = self.trainer.step.growth.batch_size * config.train.n_critic
        self.batch = next(self.trainer.batches)

    @contextlib.contextmanager
    def around(self) -> Iterator[None]:
        with self.patch(), numerics(self.precision, self.config.train.exact):
            yield

    def iteration(self) -> None:
        trainer = self.trainer
        trainer.recovery.after_iteration(*trainer.step(trainer.batches))

    def d_step(self) -> None:
        self.trainer.step.d_step(*self.batch)

    def g_step(self) -> None:
        step, (images, labels) = self.trainer.step, self.batch
        step.g_step(step.draws.real_images(images), step.draws.labels_of(labels))


def layers_by_type(run: Recipe) -> str:
    """The shares of D's layers with weights by the number format of their outputs in the D step, penalties included."""
    found: dict[str, int] = {}

    def count(_: nn.Module, __: Any, output: Any) -> None:
        name = str(output.dtype).removeprefix("torch.")
        found[name] = found.get(name, 0) + 1

    D, step = run.trainer.state.D, run.trainer.step
    graphs, step.graphs = step.graphs, None  # a replay calls no layer
    compiled, step.update_D.compiled = step.update_D.compiled, None
    layers = [m for m in D.modules() if not [*m.children()] and [*m.parameters(recurse=False)]]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        with run.around():
            run.d_step()
    finally:
        for hook in hooks:
            hook.remove()
        step.graphs, step.update_D.compiled = graphs, compiled
    total = sum(found.values())
    return ", ".join(f"{number / total:.0%} {name}" for name, number in sorted(found.items())) or "none seen"
