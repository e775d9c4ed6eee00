"""Helpers for all tests: they run the command line in its own process, with a cache directory for tests only."""

from __future__ import annotations

import functools
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gan_dist.data.datasets import describe
from gan_dist.data.points import POINTS
from gan_dist.models._layers import MinibatchStd
from gan_dist.parallel.accelerate_adapter import forget_state
from gan_dist.settings.config import load_config
from gan_dist.settings.schema import Config, Growth
from gan_dist.wiring.data import source_of
from gan_dist.wiring.networks import make_discriminator, make_generator

ROOT = Path(__file__).parent.parent

# Small enough for a second or two of training on one core.
TINY = [
    "train.kimg=4",
    "train.batch_size=32",
    "model.g_widths=[32]",
    "model.d_widths=[32]",
    "log.every_kimg=1",
    "sample.every_kimg=2",
    "checkpoint.every_kimg=2",
    "metrics.every_kimg=0",
    "tracking.wandb=disabled",
    "train.device=cpu",
]


# What makes a recipe of each architecture small; a new architecture needs a line here.
SMALL = {
    "mlp": ["model.g_widths=[32]", "model.d_widths=[32]"],
    "dcgan": ["model.g_widths=[8,4]", "model.d_widths=[4,8]"],
    "sngan": ["model.g_widths=[8,8,4]", "model.d_widths=[4,8,8,8]"],
    "pggan": ["model.g_widths=[8,8,4]", "model.d_widths=[4,8,8]"],
    "r3gan": [
        *("model.g_widths=[8,8,4]", "model.d_widths=[4,8,8]"),
        *("model.g_args={blocks: 1, group_size: 4}", "model.d_args={blocks: 1, group_size: 4}"),
    ],
}


@functools.cache
def recipe_file(name: str) -> Config:
    """A file of `configs/` as it is; all tests share the one object, and none may change it."""
    return load_config(ROOT / f"configs/{name}.yaml")


def load_recipe(name: str, *overrides: str) -> Config:
    """A file of `configs/` with a small network, on 16x16 handwritten digits whatever its own images are."""
    path = ROOT / f"configs/{name}.yaml"
    recipe = recipe_file(name)
    data = (
        []
        if recipe.data.name in POINTS
        else ["data.name=digits", "data.image_size=16", "data.root=data", "data.stacked=false"]
    )
    attention = [f"model.{side}_args={{attention: 8}}" for side in "gd" if "attention" in recipe.model.g_args]
    config = load_config(path, [*data, *SMALL[recipe.model.name], *attention, "model.z_dim=8", *overrides])
    if config.growth.stable_kimg:  # to go through all stages soon
        config.growth = Growth(0.03, 0.04, [config.train.batch_size * i for i in (1, 2, 1)])
    return config


@functools.cache
def mixes_samples(name: str) -> bool:
    """D or G of a recipe has statistics of a batch, so that micro-batches change what it computes."""
    config = load_recipe(name)
    info = describe(source_of(config.data))
    with torch.device("meta"):
        networks = [make(config.model, info.image_shape, 0) for make in (make_generator, make_discriminator)]
    return any(isinstance(m, nn.BatchNorm2d | MinibatchStd) for network in networks for m in network.modules())


RECIPES = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
OF_EACH_ARCHITECTURE = {recipe_file(name).model.name: name for name in reversed(RECIPES)}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files whose few tests take minutes come first, so that no worker is left alone with one at the end."""
    slow = ["test_shared_gpu", "test_resume", "test_slurm", "test_reliability", "test_processes", "test_distributed"]
    slow += ["test_group_of_one", "test_quality"]
    order = {name: i for i, name in enumerate(slow)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Classifiers for metrics are trained once per session and never read from the user's cache; a thread a process."""
    torch.set_num_threads(1)
    before = dict(os.environ)
    os.environ["GAN_DIST_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        os.environ.pop(name, None)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(autouse=True, scope="module")
def _no_accelerate_state() -> None:
    """Reset Accelerate's global state before each file of tests, because it keeps one device and one precision."""
    forget_state()


def start_ranks(world_size: int, command: list[str], cwd: Path, **env: str) -> list[subprocess.Popen[str]]:
    """Start processes that find each other as with a launcher, but without a launcher process above them.

    A single process gets no launcher's variables: with LOCAL_RANK, Accelerate on a CPU would wrap its networks.
    """
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    n = str(world_size)
    world = {"WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, "-u", *command],
            cwd=cwd,
            env={
                **os.environ,
                **world,
                **({"RANK": str(rank), "LOCAL_RANK": str(rank)} if world_size > 1 else {}),
                **env,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for rank in range(world_size)
    ]


def distance(a: dict[str, Tensor], b: dict[str, Tensor], smallest: float = 1e-7) -> float:
    """The largest difference in any tensor, relative to its largest entry or to `smallest`.

    A difference of 1e-16 is the rounding of float64: D's last bias has no gradient but that in a relativistic loss.
    """
    assert a.keys() == b.keys()
    return max(((a[k].double() - b[k].double()).abs().max() / b[k].abs().max().clamp(min=smallest)).item() for k in a)


Train = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """Run `python train.py …` in an empty directory; the tiny settings come before the given ones."""

    def run(*arguments: str, tiny: bool = True, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        configs = [argument for argument in arguments if "=" not in argument]
        overrides = [argument for argument in arguments if "=" in argument]
        return subprocess.run(
            [sys.executable, str(ROOT / "train.py"), *configs, *(TINY if tiny else []), *overrides],
            cwd=tmp_path,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run
