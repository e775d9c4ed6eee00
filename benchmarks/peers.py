"""The package compared with training steps of other projects: mimicry's SNGAN and the official R3GAN.

    python -m benchmarks peers --mimicry DIR --r3gan DIR data.root=DIR [--images N] [--rounds 3] [--json FILE]

DIR is a clone of https://github.com/kwotsin/mimicry or https://github.com/brownvc/R3GAN. Their steps run on one batch
that stays in memory, and do nothing else. The package runs its complete Trainer with averaging on Fashion-MNIST,
resized to 32 pixels in colour. The networks have the same shape, as the numbers of parameters show. On a GPU, R3GAN is
that of the paper for CIFAR-10 in bf16, without classes, in micro-batches of 64 images. The official networks run in
bf16 except in their stages of 4x4 pixels, which run in fp32; ours run in bf16 by autocast. On a CPU, R3GAN is an eighth
as wide and runs in fp32. On a GPU, the official operations are compiled at the start, which needs nvcc, ninja and two
minutes.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import os
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from packaging.version import parse

from benchmarks import arena
from benchmarks.arena import Contestant, Entry
from benchmarks.contestants import Package, Simple, sizes

ROOT = Path(__file__).parent.parent
COLOUR = ["data.image_size=32", "data.channels=3", "log.every_kimg=1000", "sample.every_kimg=0",
          "checkpoint.every_kimg=0", "model.conditional=false"]  # fmt: skip
BLOCKS, GROUP, STAGES = 2, 16, 4  # R3GAN's networks: blocks per stage, channels per group, stages
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Ours(Package):
    def parameters(self) -> list[int]:
        return sizes(self.trainer.state.G, self.trainer.state.D)

    def peak(self) -> float:
        return arena.peak_of_device()


class Mimicry(Simple):
    """SNGAN for 32 pixels, trained as in mimicry's README: hinge loss, five D steps, Adam with 2e-4."""

    def __init__(self, source: str, batch_size: int) -> None:
        # Load only the networks and their steps, because the whole package imports TensorFlow for its metrics.
        for name in ("torch_mimicry", "torch_mimicry.training"):
            package = types.ModuleType(name)
            package.__path__ = [str(Path(source, *name.split(".")))]
            sys.modules[name] = package
        sys.path.insert(0, source)
        from torch_mimicry.nets.sngan.sngan_32 import (  # type: ignore[import-not-found]
            SNGANDiscriminator32,
            SNGANGenerator32,
        )
        from torch_mimicry.training.metric_log import MetricLog  # type: ignore[import-not-found]

        self.G, self.D, self.log = SNGANGenerator32().to(DEVICE), SNGANDiscriminator32().to(DEVICE), MetricLog()
        self.opt_G, self.opt_D = (torch.optim.Adam(m.parameters(), 2e-4, (0.0, 0.9)) for m in (self.G, self.D))
        self.batch = (torch.rand(batch_size, 3, 32, 32, device=DEVICE) * 2 - 1, torch.zeros(batch_size, device=DEVICE))

    def parameters(self) -> list[int]:
        return sizes(self.G, self.D)

    def peak(self) -> float:
        return arena.peak_of_device()

    def run(self, images: int) -> None:
        for step in range(images // len(self.batch[0])):
            self.D.train_step(self.batch, netG=self.G, optD=self.opt_D, log_data=self.log, device=DEVICE)
            if step % 5 == 4:
                self.G.train_step(self.batch, netD=self.D, optG=self.opt_G, log_data=self.log, device=DEVICE)


def make_importable(source: str) -> None:
    """Make it possible to import the official R3GAN's code and to load its operations when they are needed.

    After torch has loaded an operation, the official loader looks for its module by name. torch no longer registers
    modules by name, so this function registers what torch returns. The loader also compares versions with
    `pkg_resources`, which newer versions of setuptools do not contain, so this function replaces it.
    """
    if source not in sys.path:
        sys.path.insert(0, source)
    try:
        importlib.import_module("pkg_resources")
    except ImportError:
        stand_in = types.ModuleType("pkg_resources")
        stand_in.parse_version = parse  # type: ignore[attr-defined]
        sys.modules["pkg_resources"] = stand_in
    extensions = importlib.import_module("torch.utils.cpp_extension")  # not at the top: it looks for compilers
    load = extensions.load
    if hasattr(load, "__wrapped__"):
        return

    @functools.wraps(load)
    def load_and_register(name: str, *arguments: Any, **settings: Any) -> Any:
        sys.modules[name] = load(name, *arguments, **settings)
        return sys.modules[name]

    extensions.load = load_and_register  # type: ignore[attr-defined]


OPERATIONS = ("bias_act", "upfirdn2d")


def build_operation(source: str, name: str) -> None:
    """Compile one of the official operations; torch then finds it in its cache. Only a GPU needs these operations."""
    make_importable(source)
    importlib.import_module(f"torch_utils.ops.{name}")._init()


class OfficialR3GAN(Simple):
    """The official networks and steps, without classes, called as in the official training loop.

    The settings are those of the official loop: on a GPU, all stages run in bf16 except those of 4x4 pixels, which run
    in IEEE fp32, and cuDNN searches for the fastest kernels.
    """

    def __init__(self, source: str, width: int, batch_size: int, micro_batch_size: int) -> None:
        make_importable(source)
        from R3GAN.Networks import Discriminator, Generator  # type: ignore[import-not-found]
        from R3GAN.Trainer import AdversarialTraining  # type: ignore[import-not-found]

        shape: list[Any] = [[width] * STAGES, [2 * width // GROUP] * STAGES, [BLOCKS] * STAGES, 2]
        self.G, self.D = Generator(64, *shape).to(DEVICE), Discriminator(*shape).to(DEVICE)
        if DEVICE.type == "cuda":
            for stage in (*self.G.MainLayers[1:], *self.D.MainLayers[:-1]):
                stage.DataType = torch.bfloat16
        self.steps = AdversarialTraining(self.G, self.D)
        self.opt_G, self.opt_D = (torch.optim.Adam(m.parameters(), 2e-4, (0.0, 0.9)) for m in (self.G, self.D))
        self.real = (torch.rand(batch_size, 3, 32, 32, device=DEVICE) * 2 - 1).split(micro_batch_size)
        self.images = batch_size
        self.warm_up = 2

    def parameters(self) -> list[int]:
        return sizes(self.G, self.D)

    def peak(self) -> float:
        return arena.peak_of_device()

    @contextmanager
    def around(self) -> Iterator[None]:
        """torch's switches as in the official loop; the values from before are restored at the end."""
        cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
        before = cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32
        cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = True, False, False, False
        try:
            yield
        finally:
            cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = before

    def d_step(self) -> None:
        self.G.requires_grad_(False)
        self.D.requires_grad_(True)
        self.opt_D.zero_grad(set_to_none=True)
        for real in self.real:
            z = torch.randn(len(real), 64, device=DEVICE)
            self.steps.AccumulateDiscriminatorGradients(z, real, None, 0.05, Scale=len(real) / self.images)
        self.opt_D.step()

    def g_step(self) -> None:
        self.D.requires_grad_(False)
        self.G.requires_grad_(True)
        self.opt_G.zero_grad(set_to_none=True)
        for real in self.real:
            z = torch.randn(len(real), 64, device=DEVICE)
            self.steps.AccumulateGeneratorGradients(z, real, None, Scale=len(real) / self.images)
        self.opt_G.step()

    def iteration(self) -> None:
        self.d_step()
        self.g_step()

    def run(self, images: int) -> None:
        with self.around():
            for _ in range(images // self.images):
                self.iteration()


Pair = tuple[str, list[Entry], int]  # name, the other project and this package, images per turn


def mimicry(source: Path, settings: list[str]) -> Pair:
    own = ["data.name=FashionMNIST", *COLOUR, *settings]
    entries = _both("Mimicry", {"source": str(source.resolve()), "batch_size": 64}, "sngan_projection_cifar10", own)
    return "SNGAN, 32 pixels, batch 64", entries, 320 if DEVICE.type == "cpu" else 12_800


def r3gan(source: Path, settings: list[str]) -> Pair:
    width, batch, piece, images = (96, 32, 32, 128) if DEVICE.type == "cpu" else (768, 512, 64, 10_240)
    own = ["data.name=FashionMNIST", *COLOUR, f"train.batch_size={batch}", f"train.micro_batch_size={piece}",
           *(f"model.{of}_widths=[{','.join([str(width)] * STAGES)}]" for of in "gd"), *settings]  # fmt: skip
    own += ["train.precision=bf16"] if DEVICE.type == "cuda" else []
    peer = {"source": str(source.resolve()), "width": width, "batch_size": batch, "micro_batch_size": piece}
    entries = _both("OfficialR3GAN", peer, "r3gan_cifar10", own)
    precision = "" if DEVICE.type == "cpu" else ", bf16: the official in all stages but those of 4x4, ours by autocast"
    return f"R3GAN, 32 pixels, {width} wide, batch {batch}{precision}", entries, images


def _both(name: str, arguments: dict[str, Any], config: str, settings: list[str]) -> list[Entry]:
    ours = {"config": str(ROOT / f"configs/{config}.yaml"), "settings": settings}
    return [Entry("peer", f"benchmarks.peers:{name}", arguments), Entry("package", "benchmarks.peers:Ours", ours)]


def compare(entries: list[Entry], images: int, rounds: int) -> dict[str, Any]:
    """Numbers of parameters, speeds in each round, and peak memory in MiB."""
    contestants = [Contestant(entry, sorted(os.sched_getaffinity(0))) for entry in entries]
    try:
        parameters = {c.name: c.ask("parameters")[1][0] for c in contestants}
        speeds = arena.take_turns(contestants, images, rounds)
        return {"parameters": parameters, "speeds": speeds, "MiB": {c.name: c.ask("peak")[1][0] for c in contestants}}
    finally:
        for contestant in contestants:
            contestant.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", help="key.sub=value")
    parser.add_argument("--mimicry", type=Path)
    parser.add_argument("--r3gan", type=Path)
    parser.add_argument("--images", type=int, help="images per turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_intermixed_args()
    pairs = [mimicry(options.mimicry, options.settings)] if options.mimicry else []
    pairs += [r3gan(options.r3gan, options.settings)] if options.r3gan else []
    report = {}
    for name, entries, images in pairs:
        report[name] = compare(entries, options.images or images, options.rounds)
        found = report[name]
        print(f"{name}: parameters of G and D {found['parameters']}, peak MiB {found['MiB']}")
        print(f"{arena.table(found['speeds'], ['peer'])}\n", flush=True)
    arena.write(options.json, report)


if __name__ == "__main__":
    main()
