"""Recipes that the parts of `benchmarks.gpu` train, with each means of speed as it is, or replaced by torch's own.

They train on random images of their own shapes, so that no data set has to be there.
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
LAST_STAGE = ["growth.stable_kimg=0", "growth.fade_kimg=0", "growth.batch_sizes=[]"]  # of a recipe that grows
STAND_INS = 2048  # images of a data set
# What makes the networks of each architecture tiny, for images of 16 pixels.
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
    """A file of `configs/` with these settings, and what its data are like; a tiny one has tiny networks and images."""
    path = CONFIGS / f"{name}.yaml"
    own = [*QUIET, *EVENTLESS]
    if tiny:
        recipe = load_config(path)
        own += [*TINY[recipe.model.name], "model.z_dim=8", "train.batch_size=8"]
        own += [] if recipe.data.name in POINTS else ["data.image_size=16"]
        own += [f"model.{side}_args={{attention: 8}}" for side in "gd" if "attention" in recipe.model.g_args]
        own += [f"model.{side}_args={{tanh: false}}" for side in "g" if recipe.data.name in POINTS]
    config = load_config(path, [*own, *settings])
    # A folder need not be there to know its images' shape; it has no classes.
    data = replace(config.data, name="CelebA") if config.data.name == "folder" else config.data
    info = describe(source_of(data))
    return config, info if data.name in POINTS else replace(info, num_images=STAND_INS)


def precision_of(config: Config) -> str:
    return resolve(config.train, on_gpu())


def reset_accelerate() -> None:
    """Let this process have a run in another precision or on another device than the one before."""
    forget_state()


def distributed(config: Config) -> Distributed:
    """The place of a run in a process that may have had others before."""
    reset_accelerate()
    train = config.train
    return Distributed(precision_of(config), not on_gpu(), train.compress_gradients, train.compile)


@functools.cache
def random_images(shape: tuple[int, int, int]) -> Tensor:
    return torch.randint(0, 256, (STAND_INS, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def stand_in_data() -> AbstractContextManager[Any]:
    """Within it, runs are built on random images instead of reading their data set; points are what they are."""

    def load(source: Source, info: DataInfo, *_: Any) -> tuple[Images, str]:
        if source.name in POINTS:
            return load_dataset(source, info), "points"
        labels = torch.arange(STAND_INS) % max(1, info.num_classes)
        return ImageTensor(random_images(info.image_shape), labels), "random"

    return mock.patch.object(gan_dist.wiring.build, "load_shared", load)


def torchs_own() -> AbstractContextManager[Any]:
    """Within it, nothing of `gan_dist.kernels` that is there for speed on a GPU is used."""
    stack = ExitStack()
    for patch in (operator_off, resampling_off, groups_apart, contiguous):
        stack.enter_context(patch())
    return stack


def operator_off() -> AbstractContextManager[Any]:
    """Within it, second derivatives of convolutions are torch's own; the layout is the package's."""
    return mock.patch.object(convolution, "twice_differentiable", contextlib.nullcontext)


def resampling_off() -> AbstractContextManager[Any]:
    """Within it, R3GAN's maps are halved and doubled by torch's depthwise convolutions."""

    def row(x: Tensor, total: float) -> Tensor:
        values = 4 - 2 * (torch.arange(4, dtype=x.dtype, device=x.device) - 1.5).abs()  # 1, 3, 3, 1
        return (values[:, None] * values * (total / 64)).expand(x.shape[1], 1, 4, 4)

    def halve(x: Tensor) -> Tensor:
        return F.conv2d(x, row(x, 1.0), stride=2, padding=1, groups=x.shape[1])

    def double(x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, row(x, 4.0), stride=2, padding=1, groups=x.shape[1])

    return mock.patch.multiple(r3gan, halve=halve, double=double)


def groups_apart() -> AbstractContextManager[Any]:
    """Within it, networks are built with the groups of their convolutions as they are, not two joined as one."""
    return mock.patch.object(layout, "join_groups")


def contiguous() -> AbstractContextManager[Any]:
    """Within it, networks are built in torch's own layout."""
    return mock.patch.object(layout, "use_channels_last", return_value=False)


def channels_last() -> AbstractContextManager[Any]:
    """Within it, all networks are built in channels_last."""
    return mock.patch.object(layout, "use_channels_last", return_value=True)


class Recipe:
    """A run of this package, one iteration at a time: what the Trainer's loop does, without what is due now and then.

    Its single steps run on one batch that stays on the device.
    """

    def __init__(self, config: Config, info: DataInfo, patch: Patch = contextlib.nullcontext) -> None:
        self.config, self.patch = config, patch
        self.precision = precision_of(config)
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        with self.around(), stand_in_data():
            run = gan_dist.wiring.build.build(config, info, Path(self._folder.name), None, distributed(config))
        self.trainer = run.trainer
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
        self.trainer.step.g_step(*self.batch)


def layers_by_type(run: Recipe) -> str:
    """Of D's layers with weights, how many have given which type of numbers in D's step, its penalties included."""
    found: dict[str, int] = {}

    def count(_: nn.Module, __: Any, output: Any) -> None:
        name = str(output.dtype).removeprefix("torch.")
        found[name] = found.get(name, 0) + 1

    D = run.trainer.state.D
    layers = [m for m in D.modules() if not [*m.children()] and [*m.parameters(recurse=False)]]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        with run.around():
            run.d_step()
    finally:
        for hook in hooks:
            hook.remove()
    total = sum(found.values())
    return ", ".join(f"{number / total:.0%} {name}" for name, number in sorted(found.items())) or "none seen"
