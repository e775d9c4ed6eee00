"""Beside other projects' training steps, from copies of their code: mimicry's SNGAN, the official R3GAN.

    python -m benchmarks peers --mimicry DIR --r3gan DIR data.root=DIR [--images N] [--rounds 3] [--json FILE]

DIR is a clone of https://github.com/kwotsin/mimicry or https://github.com/brownvc/R3GAN. Their steps run on one batch
that stays in memory, with nothing around; ours is the whole Trainer on Fashion-MNIST, resized to 32 pixels in colour,
with averaging. Networks have the same shape, which the numbers of their parameters show; R3GAN's are an eighth as wide
as in the paper, as no CPU trains those. The official R3GAN's operations import `pkg_resources`: setuptools below 81.
"""

from __future__ import annotations

import argparse
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import arena
from benchmarks.arena import Contestant, Entry
from benchmarks.contestants import Package, Simple, sizes

ROOT = Path(__file__).parent.parent
COLOUR = ["data.image_size=32", "data.channels=3", "log.every_kimg=1000", "sample.every_kimg=0",
          "checkpoint.every_kimg=0", "model.conditional=false"]  # fmt: skip
WIDTH, BLOCKS, GROUP, STAGES = 96, 2, 16, 4  # of R3GAN's networks


class Ours(Package):
    def parameters(self) -> list[int]:
        return sizes(self.trainer.state.G, self.trainer.state.D)


class Mimicry(Simple):
    """SNGAN for 32 pixels as its README trains it: hinge, five D steps, Adam 2e-4."""

    def __init__(self, source: str, batch_size: int) -> None:
        # Only networks and their steps: the package itself imports TensorFlow for its metrics.
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

        self.G, self.D, self.log = SNGANGenerator32(), SNGANDiscriminator32(), MetricLog()
        self.opt_G, self.opt_D = (torch.optim.Adam(m.parameters(), 2e-4, (0.0, 0.9)) for m in (self.G, self.D))
        self.batch = (torch.rand(batch_size, 3, 32, 32) * 2 - 1, torch.zeros(batch_size))

    def parameters(self) -> list[int]:
        return sizes(self.G, self.D)

    def run(self, images: int) -> None:
        for step in range(images // len(self.batch[0])):
            self.D.train_step(self.batch, netG=self.G, optD=self.opt_D, log_data=self.log, device=torch.device("cpu"))
            if step % 5 == 4:
                self.G.train_step(
                    self.batch, netD=self.D, optG=self.opt_G, log_data=self.log, device=torch.device("cpu")
                )


class OfficialR3GAN(Simple):
    """The official networks and steps, as its training loop calls them."""

    def __init__(self, source: str, batch_size: int) -> None:
        sys.path.insert(0, source)
        from R3GAN.Networks import Discriminator, Generator  # type: ignore[import-not-found]
        from R3GAN.Trainer import AdversarialTraining  # type: ignore[import-not-found]

        shape: list[Any] = [[WIDTH] * STAGES, [2 * WIDTH // GROUP] * STAGES, [BLOCKS] * STAGES, 2]
        self.G, self.D = Generator(64, *shape), Discriminator(*shape)
        self.steps = AdversarialTraining(self.G, self.D)
        self.opt_G, self.opt_D = (torch.optim.Adam(m.parameters(), 2e-4, (0.0, 0.9)) for m in (self.G, self.D))
        self.real = torch.rand(batch_size, 3, 32, 32) * 2 - 1

    def parameters(self) -> list[int]:
        return sizes(self.G, self.D)

    def run(self, images: int) -> None:
        n = len(self.real)
        for _ in range(images // n):
            self.D.requires_grad_(True)
            self.opt_D.zero_grad(set_to_none=True)
            self.steps.AccumulateDiscriminatorGradients(torch.randn(n, 64), self.real, None, 0.05)
            self.opt_D.step()
            self.D.requires_grad_(False)
            self.opt_G.zero_grad(set_to_none=True)
            self.steps.AccumulateGeneratorGradients(torch.randn(n, 64), self.real, None)
            self.opt_G.step()


def pairs(options: argparse.Namespace) -> Iterator[tuple[str, list[Entry], int]]:
    """(name, the peer and this package, images of a turn)"""
    if options.mimicry:
        config = str(ROOT / "configs/sngan_projection_cifar10.yaml")
        own = [*options.settings, "data.name=FashionMNIST", *COLOUR]
        peer = {"source": str(options.mimicry.resolve()), "batch_size": 64}
        yield "SNGAN, 32 pixels, batch 64", _both("Mimicry", peer, config, own), options.images or 320
    if options.r3gan:
        widths = f"[{','.join([str(WIDTH)] * STAGES)}]"
        config = str(ROOT / "configs/r3gan_cifar10.yaml")
        own = [*options.settings, "data.name=FashionMNIST", *COLOUR, "train.batch_size=32",
               f"model.g_widths={widths}", f"model.d_widths={widths}"]  # fmt: skip
        peer = {"source": str(options.r3gan.resolve()), "batch_size": 32}
        yield (
            f"R3GAN, 32 pixels, {WIDTH} wide, batch 32",
            _both("OfficialR3GAN", peer, config, own),
            options.images or 128,
        )


def _both(name: str, arguments: dict[str, Any], config: str, settings: list[str]) -> list[Entry]:
    ours = {"config": config, "settings": settings}
    return [Entry("peer", f"benchmarks.peers:{name}", arguments), Entry("package", "benchmarks.peers:Ours", ours)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", help="key.sub=value")
    parser.add_argument("--mimicry", type=Path)
    parser.add_argument("--r3gan", type=Path)
    parser.add_argument("--images", type=int, help="of a turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_intermixed_args()
    report = {}
    for name, entries, images in pairs(options):
        contestants = [Contestant(entry, sorted(os.sched_getaffinity(0))) for entry in entries]
        parameters = {c.name: c.ask("parameters")[1][0] for c in contestants}
        speeds = arena.take_turns(contestants, images, options.rounds)
        for contestant in contestants:
            contestant.close()
        print(f"{name}: parameters of G and D {parameters}\n{arena.table(speeds, ['peer'])}\n", flush=True)
        report[name] = {"parameters": parameters, "speeds": speeds}
    arena.write(options.json, report)


if __name__ == "__main__":
    main()
