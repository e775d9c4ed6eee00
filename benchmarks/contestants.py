"""Ways to train the same two networks: the loop of tutorials, plain Accelerate, this package, the bare computation.

All start with the weights that follow from the seed of the config. `losses` gives them the images and latents that
gan_dist draws.
"""

from __future__ import annotations

import copy
import gzip
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchvision import datasets, transforms

from benchmarks.arena import peak_mib
from gan_dist import rng
from gan_dist.data import DataInfo
from gan_dist.data.datasets import describe, load_dataset
from gan_dist.data.in_memory import Images
from gan_dist.data.loader import KeyedStream
from gan_dist.engine.graphs import WARM_UP, CudaCapture
from gan_dist.game.losses import LOSSES
from gan_dist.game.regularizers import squared_gradient_norms
from gan_dist.kernels import convolution
from gan_dist.kernels.layout import adapt
from gan_dist.kernels.switches import numerics
from gan_dist.parallel.distributed import Distributed
from gan_dist.parallel.signals import StopSignals
from gan_dist.rng import Purpose, torch_seed
from gan_dist.settings.config import load_config
from gan_dist.settings.precision import resolve
from gan_dist.settings.schema import Config
from gan_dist.wiring.build import build
from gan_dist.wiring.data import source_of
from gan_dist.wiring.networks import make_discriminator, make_generator, make_optimizer

QUIET = ["metrics.every_kimg=0", "tracking.wandb=disabled", "train.kimg=1000000"]  # it ends after the last turn
Draw = tuple[Tensor, Tensor, Tensor]  # real images in [-1, 1] and the latents of the D and the G step


def configured(path: str, settings: list[str]) -> tuple[Config, DataInfo]:
    config = load_config(Path(path), [*settings, *QUIET])
    return config, describe(source_of(config.data))


def on_cpu(config: Config) -> bool:
    return config.train.device == "cpu" or not torch.cuda.is_available()


def networks(config: Config, info: DataInfo, device: torch.device) -> tuple[nn.Module, nn.Module]:
    """G and D with the weights with which a run of this config starts."""
    with torch_seed(config.train.seed, Purpose.INIT_G):
        G = make_generator(config.model, info.image_shape, 0)
    with torch_seed(config.train.seed, Purpose.INIT_D):
        D = make_discriminator(config.model, info.image_shape, 0)
    return G.to(device), D.to(device)


def first_draws(config: Config, dataset: Images, n: int, share: range, device: torch.device) -> Iterator[Draw]:
    """What a run draws in its first n iterations, as far as this process uses it."""
    stream, batch = KeyedStream(dataset, config.train.seed), config.train.batch_size
    for i in range(n):
        images, _ = stream.__getitems__(range(i * batch + share.start, i * batch + share.stop))
        real = images.to(device).float() / 127.5 - 1
        latents = [
            rng.latents(config.train.seed, purpose, number * batch + share.start, len(share), config.model.z_dim)
            for purpose, number in ((Purpose.D_LATENT, i), (Purpose.G_LATENT, i + 1))
        ]
        yield real, *(z.float().to(device) for z in latents)


def unpack(root: str, into: str) -> None:
    """Put the files of Fashion-MNIST where torchvision looks for them."""
    there = Path(into, "FashionMNIST/raw")
    there.mkdir(parents=True)
    for path in Path(root).rglob("*-ubyte*"):
        if path.suffix == ".gz":
            with gzip.open(path) as source, (there / path.stem).open("wb") as target:
                shutil.copyfileobj(source, target)
        else:
            shutil.copy(path, there)


class Simple:
    """A contestant with `step(real, z_D, z_G)`, which returns the losses of D and G, and `run(images)`."""

    config: Config
    info: DataInfo
    device: torch.device

    def train(self, turns: Iterator[int]) -> None:
        for images in turns:
            self.run(images)

    def losses(self, n: int) -> list[tuple[float, float]]:
        dataset = load_dataset(source_of(self.config.data), self.info)
        draws = first_draws(self.config, dataset, n, self.share(), self.device)
        return [tuple(float(loss) for loss in self.step(*draw)) for draw in draws]  # type: ignore[misc]

    def share(self) -> range:
        """The part of each global batch that this process computes."""
        return range(self.config.train.batch_size)

    def step(self, real: Tensor, z_D: Tensor, z_G: Tensor) -> tuple[Any, Any]:
        raise NotImplementedError

    def run(self, images: int) -> None:
        raise NotImplementedError


class Textbook(Simple):
    """The loop of introductory tutorials: images decoded one by one, a sigmoid and BCELoss, `.item()` in each step."""

    def __init__(self, config: str, settings: list[str]) -> None:
        self.config, self.info = configured(config, settings)
        self.device = torch.device("cpu" if on_cpu(self.config) else "cuda")
        self.G, D = networks(self.config, self.info, self.device)
        self.D = nn.Sequential(D, nn.Sigmoid())
        self.opt_G = torch.optim.Adam(self.G.parameters(), lr=2e-4, betas=(0.5, 0.999))
        self.opt_D = torch.optim.Adam(self.D.parameters(), lr=2e-4, betas=(0.5, 0.999))
        self.bce = nn.BCELoss()
        resize = [transforms.Resize(self.info.image_shape[1])] if self.info.image_shape[1] != 28 else []
        transform = transforms.Compose([*resize, transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))])
        with tempfile.TemporaryDirectory() as root:
            unpack(self.config.data.root, root)
            dataset = datasets.FashionMNIST(root, transform=transform)  # reads the whole data set
        self.loader = DataLoader(dataset, batch_size=self.config.train.batch_size, shuffle=True)
        self.batches = self._epochs()

    def _epochs(self) -> Iterator[Tensor]:
        while True:
            for images, _ in self.loader:
                yield images

    def step(self, real: Tensor, z_D: Tensor, z_G: Tensor) -> tuple[float, float]:
        real = real.to(self.device)
        ones = torch.ones(len(real), device=self.device)
        zeros = torch.zeros(len(real), device=self.device)
        fake = self.G(z_D)
        loss_D = self.bce(self.D(real), ones) + self.bce(self.D(fake.detach()), zeros)
        self.opt_D.zero_grad()
        loss_D.backward()
        self.opt_D.step()

        loss_G = self.bce(self.D(self.G(z_G)), ones)
        self.opt_G.zero_grad()
        loss_G.backward()
        self.opt_G.step()
        return loss_D.item(), loss_G.item()

    def run(self, images: int) -> None:
        seen = 0
        while seen < images:
            real = next(self.batches)
            z_D, z_G = (torch.randn(len(real), self.config.model.z_dim, device=self.device) for _ in range(2))
            self.step(real, z_D, z_G)
            seen += len(real)


class PlainAccelerate(Simple):
    """Two models, two optimizers and a loader passed through `prepare`, and nothing else. The images are in memory."""

    def __init__(self, config: str, settings: list[str]) -> None:
        self.config, self.info = configured(config, settings)
        # With batch normalization, two forward passes before a backward pass need this setting.
        handlers = [DistributedDataParallelKwargs(broadcast_buffers=False)]
        self.accelerator = Accelerator(cpu=on_cpu(self.config), kwargs_handlers=handlers)
        self.device = self.accelerator.device
        G, D = networks(self.config, self.info, torch.device("cpu"))
        opt_G = torch.optim.Adam(G.parameters(), lr=2e-4, betas=(0.5, 0.999))
        opt_D = torch.optim.Adam(D.parameters(), lr=2e-4, betas=(0.5, 0.999))
        images = load_dataset(source_of(self.config.data), self.info)
        everything, _ = images.__getitems__(list(range(len(images))))
        dataset = torch.utils.data.TensorDataset(everything.float() / 127.5 - 1)
        self.n = self.config.train.batch_size // self.accelerator.num_processes
        loader = DataLoader(dataset, batch_size=self.n, shuffle=True, drop_last=True)
        self.G, self.D, self.opt_G, self.opt_D, self.loader = self.accelerator.prepare(G, D, opt_G, opt_D, loader)
        self.batches = self._epochs()

    def _epochs(self) -> Iterator[Tensor]:
        while True:
            for (images,) in self.loader:
                yield images

    def step(self, real: Tensor, z_D: Tensor, z_G: Tensor) -> tuple[Tensor, Tensor]:
        ones, zeros = torch.ones(len(real), device=self.device), torch.zeros(len(real), device=self.device)
        fake = self.G(z_D)
        loss_real = binary_cross_entropy_with_logits(self.D(real), ones)
        loss_D = loss_real + binary_cross_entropy_with_logits(self.D(fake.detach()), zeros)
        self.opt_D.zero_grad()
        self.accelerator.backward(loss_D)
        self.opt_D.step()

        loss_G = binary_cross_entropy_with_logits(self.D(self.G(z_G)), ones)
        self.opt_G.zero_grad()
        self.accelerator.backward(loss_G)
        self.opt_G.step()
        return loss_D.detach(), loss_G.detach()

    def share(self) -> range:
        rank = self.accelerator.process_index
        return range(rank * self.n, (rank + 1) * self.n)

    def run(self, images: int) -> None:
        for _ in range(images // self.config.train.batch_size):
            z_D, z_G = (torch.randn(self.n, self.config.model.z_dim, device=self.device) for _ in range(2))
            loss_D, _ = self.step(next(self.batches), z_D, z_G)
        loss_D.item()


class Package:
    """gan_dist as a user runs it: the complete Trainer with averaging, logging, grids and checkpoints."""

    def __init__(self, config: str, settings: list[str]) -> None:
        self.before = peak_mib()
        self.config, info = configured(config, settings)
        train, cpu = self.config.train, on_cpu(self.config)
        self.dist = Distributed(resolve(train, on_gpu=not cpu), cpu, train.compress_gradients)
        self.folder = tempfile.mkdtemp()
        self.wired = build(self.config, info, Path(self.folder), None, self.dist)
        self.trainer = self.wired.trainer

    def losses(self, n: int) -> list[tuple[float, float]]:
        found = []
        for _ in range(n):
            self.trainer.step(self.trainer.batches)
            means = self.trainer.step.stats.read()
            found.append((means["loss_D"], means["loss_G"]))
        return found

    every_nimg, at_start, at_end = 1, False, False  # this object is the trainer's last callback

    def train(self, turns: Iterator[int]) -> None:
        with numerics(self.dist.precision, self.config.train.exact):  # also for questions between turns
            self.turns, self.until = turns, self.trainer.state.nimg + next(turns)
            self.trainer.callbacks = [*self.trainer.callbacks, self]
            try:
                self.wired.train(StopSignals())
            except StopIteration:
                self.trainer.batches.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __call__(self, state: Any) -> None:
        if state.nimg >= self.until:
            self.wired.save.wait()  # the time to write a checkpoint belongs to this turn
            self.until = state.nimg + next(self.turns)

    def memory(self) -> dict[str, float]:
        """Peak memory that training has added, and what the average of G and a copy of the whole state take, MiB."""
        state = self.trainer.state
        average = sum(p.nbytes for p in state.G_ema.parameters()) / 2**20
        networks = [t for net in (state.G, state.D, state.G_ema) for t in (*net.parameters(), *net.buffers())]
        moments = [t for opt in (state.opt_G, state.opt_D) for kept in opt.state.values() for t in kept.values()]
        everything = [t for t in (*networks, *moments) if isinstance(t, Tensor)]
        return {
            "peak": peak_mib() - self.before,
            "average": average,
            "copy": sum(t.nbytes for t in everything) / 2**20,
        }


class Bound(Simple):
    """The same forward and backward passes and optimizer steps on one batch that stays in memory, and nothing else."""

    def __init__(self, config: str, settings: list[str]) -> None:
        self.before = peak_mib()
        self.config, self.info = configured(config, settings)
        cpu = on_cpu(self.config)
        self.precision = resolve(self.config.train, on_gpu=not cpu)
        self.device = Distributed("fp32", cpu).device  # glibc keeps freed memory, as with the package
        self.G, self.D = (adapt(net, self.precision) for net in networks(self.config, self.info, self.device))
        self.opt_G = make_optimizer(self.config.optim.G, self.G)
        self.opt_D = make_optimizer(self.config.optim.D, self.D)
        self.loss = LOSSES[self.config.loss.name]
        self.one_pass = not any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in self.D.modules())
        n, z_dim = self.config.train.batch_size, self.config.model.z_dim
        self.resident: Draw = (
            torch.rand(n, *self.info.image_shape, device=self.device) * 2 - 1,
            torch.randn(n, z_dim, device=self.device),
            torch.randn(n, z_dim, device=self.device),
        )

    def train(self, turns: Iterator[int]) -> None:
        with numerics(self.precision, self.config.train.exact):
            super().train(turns)

    def step(self, real: Tensor, z_D: Tensor, z_G: Tensor) -> tuple[Tensor, Tensor]:
        settings = self.config.loss
        self.D.requires_grad_(True)
        self.opt_D.zero_grad()
        with torch.no_grad():
            fake = self.G(z_D)
        r1, r2 = bool(settings.r1_gamma), bool(settings.r2_gamma)
        real, fake = real.detach().requires_grad_(r1), fake.requires_grad_(r2)
        with convolution.twice_differentiable() if r1 or r2 else nullcontext():
            if self.one_pass and r1 == r2:
                logits_real, logits_fake = self.D(torch.cat([real, fake])).chunk(2)
            else:
                logits_real, logits_fake = self.D(real), self.D(fake)
        loss = self.loss.D(logits_real, logits_fake)
        loss_D = loss.mean()
        gammas = [(x, gamma) for x, gamma in ((real, settings.r1_gamma), (fake, settings.r2_gamma)) if gamma]
        if gammas:
            norms = squared_gradient_norms(torch.cat([logits_real, logits_fake]), *(x for x, _ in gammas))
            loss = loss + sum(0.5 * gamma * norm for (_, gamma), norm in zip(gammas, norms))
        loss.mean().backward()
        self.opt_D.step()

        self.D.requires_grad_(False)
        self.opt_G.zero_grad()
        logits = self.D(self.G(z_G))
        loss_G = (self.loss.G(logits, self.D(real.detach())) if self.loss.paired else self.loss.G(logits)).mean()
        loss_G.backward()
        self.opt_G.step()
        return loss_D.detach(), loss_G.detach()

    def run(self, images: int) -> None:
        for _ in range(images // self.config.train.batch_size):
            loss, _ = self.step(*self.resident)
        loss.item()

    def memory(self) -> dict[str, float]:
        return {"peak": peak_mib() - self.before}

    def floor(self) -> float:
        """Images/s if every counted floating-point operation ran at the rate of a matrix product on this machine."""

        def product(a: Sequence[int], b: Sequence[int], *_: Any, **__: Any) -> int:
            return 2 * a[0] * a[1] * b[0]

        with FlopCounterMode(display=False, custom_mapping={torch.ops.mkldnn._linear_pointwise: product}) as counter:
            self.step(*self.resident)
        return self.config.train.batch_size / (counter.get_total_flops() / matmul_rate(self.device))


class Graph(Bound):
    """The computation of `Bound` with all that a run adds to it on a GPU, as one CUDA graph for each iteration.

    This is: images that are looked up in GPU memory, latents, gradient norms, running means and the average of G. On a
    CPU the same is computed without a graph.
    """

    def __init__(self, config: str, settings: list[str]) -> None:
        super().__init__(config, settings)
        images = load_dataset(source_of(self.config.data), self.info)
        self.images = images.__getitems__(list(range(len(images))))[0].to(self.device)
        self.average = copy.deepcopy(self.G)
        self.means = torch.zeros(4, device=self.device)
        self.replay: Callable[[], Any] = self.iteration

    def iteration(self) -> None:
        n, z_dim = self.config.train.batch_size, self.config.model.z_dim
        chosen = torch.randint(len(self.images), (n,), device=self.device)
        z_D, z_G = (torch.randn(n, z_dim, device=self.device) for _ in range(2))
        losses = self.step(self.images[chosen].float() / 127.5 - 1, z_D, z_G)
        norms = [
            torch.nn.utils.get_total_norm([p.grad for p in net.parameters() if p.grad is not None])
            for net in (self.D, self.G)
        ]
        with torch.no_grad():
            self.means += torch.stack([*losses, *norms])
            torch._foreach_lerp_([*self.average.parameters()], [*self.G.parameters()], 0.01)

    def capture(self) -> None:
        """Capture an iteration after some warm-up."""
        capture = CudaCapture(self.device)
        with capture.on_stream():
            for _ in range(WARM_UP):
                self.iteration()
            _, self.replay = capture(self.iteration, ())

    def run(self, images: int) -> None:
        if self.device.type == "cuda" and self.replay == self.iteration:
            self.capture()
        for _ in range(images // self.config.train.batch_size):
            self.replay()
        self.means[0].item()


@torch.no_grad()
def matmul_rate(device: torch.device, size: int = 2048) -> float:
    """Floating-point operations per second of a product of two square matrices in fp32: the best of eight."""
    product = adapt(nn.Linear(size, size, bias=False, device=device), "fp32")
    a = torch.randn(size, size, device=device)
    best = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        product(a)[0, 0].item()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def sizes(*networks: nn.Module) -> list[int]:
    """The number of parameters of each network."""
    return [sum(parameter.numel() for parameter in network.parameters()) for network in networks]
