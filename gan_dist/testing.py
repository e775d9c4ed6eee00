"""Checks for parts of users, to be called in their tests: what gan_dist asks of its own parts.

A part is named as in the settings, and must be registered before: import its module, or install its package. Each check
raises AssertionError with what is wrong. Besides what it looks at directly, it trains a few iterations in processes of
their own, with one process, with two, and with a stop in between, which takes half a minute on two cores.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from gan_dist.data.datasets import DATASETS
from gan_dist.game.losses import LOSSES, Loss, make_loss
from gan_dist.game.regularizers import squared_gradient_norms
from gan_dist.models import DISCRIMINATORS, GENERATORS
from gan_dist.parts import Table
from gan_dist.settings.schema import Model
from gan_dist.wiring.networks import make_discriminator, make_generator, networks_on_meta
from gan_dist.wiring.trial import loss_of, wrong_attribute

_COMMAND = "import sys; from gan_dist.cli import main; sys.exit(main())"
BATCH, HALF = 8, 4  # images per iteration, and iterations before the stop
N = 3  # images in the checks of shapes
_COMMON = [
    "digits", "train.precision=fp64", "train.device=cpu", f"train.batch_size={BATCH}", "log.every_kimg=0",
    "sample.every_kimg=0", "metrics.every_kimg=0", "checkpoint.every_kimg=1", "tracking.wandb=disabled",
    "model.z_dim=8", "model.g_widths=[16]", "model.d_widths=[16]", "resume=auto",
]  # fmt: skip


def check_architecture(
    name: str,
    image_shape: tuple[int, int, int] = (1, 16, 16),
    num_classes: int = 10,
    *,
    d_name: str = "",
    g_args: Mapping[str, Any] | None = None,
    d_args: Mapping[str, Any] | None = None,
) -> None:
    """Check a generator and a discriminator.

    They must make images and logits of the right shapes, be built on torch's meta device, have second derivatives that
    agree with finite differences (for R1), give the same weights with one and with two processes (up to 1e-9), and the
    same bits after a stop and a resume.

    Args:
        name: the name of both, or of the generator.
        image_shape: (C, H, W) of the images.
        num_classes: number of classes; 0 for networks without labels. The training has 10 classes or none.
        d_name: the name of the discriminator; "" for `name`.
        g_args, d_args: their arguments.
    """
    model = Model(name=name, z_dim=8, d_name=d_name, g_args=dict(g_args or {}), d_args=dict(d_args or {}))
    networks_on_meta(model, image_shape, num_classes)
    torch.manual_seed(0)
    G = make_generator(model, image_shape, num_classes).double()
    D = make_discriminator(model, image_shape, num_classes).double()
    wrong = wrong_attribute(G, image_shape, num_classes, model.z_dim)
    assert not wrong, wrong
    y = torch.arange(N) % num_classes if num_classes else None
    x = G(torch.randn(N, model.z_dim, dtype=torch.float64), y)
    assert x.shape == (N, *image_shape), f"G must return images {(N, *image_shape)}, and returns {tuple(x.shape)}"
    assert x.abs().max() <= 1, f"G must return values in [-1, 1], and returns {x.min():g} to {x.max():g}"
    logits = D(x, y)
    again = "two calls of D give different logits: it draws random numbers, or changes its buffers when it is called"
    assert torch.equal(logits, D(x, y)), again
    assert logits.shape == (N,), f"D must return logits ({N},), and returns {tuple(logits.shape)}"
    _check_second_derivatives(D, x.detach(), y)
    arguments = [f"model.{side}_args.{key}={value}" for side, args in (("g", g_args), ("d", d_args))
                 for key, value in (args or {}).items()]  # fmt: skip
    channels, height, width = image_shape
    settings = [f"model.name={name}", f"model.d_name={d_name}", "model.g_widths=[]", "model.d_widths=[]"]
    settings += [f"data.image_size={height}x{width}", f"data.channels={channels}", "loss.r1_gamma=1"]
    settings += [f"model.conditional={'true' if num_classes else 'false'}"]
    _check_runs([*settings, *arguments], [(GENERATORS, name), (DISCRIMINATORS, model.name_of_D)])


def _check_second_derivatives(D: nn.Module, x: Tensor, y: Tensor | None) -> None:
    """Compare the gradient of R1 along a random direction with a finite difference."""
    parameters = [p for p in D.parameters() if p.requires_grad]
    direction = [torch.randn_like(p) for p in parameters]

    def r1() -> Tensor:
        real = x.clone().requires_grad_()
        return squared_gradient_norms(D(real, y), real)[0].sum()

    def moved(by: float) -> Tensor:
        with torch.no_grad():
            for p, v in zip(parameters, direction):
                p.add_(v, alpha=by)
        return r1().detach()

    gradients = torch.autograd.grad(r1(), parameters, allow_unused=True)
    slope = sum((g * v).sum() for g, v in zip(gradients, direction) if g is not None)
    step = 1e-6
    difference = (moved(step) - moved(-2 * step)) / (2 * step)
    moved(step)
    torch.testing.assert_close(
        torch.as_tensor(slope, dtype=torch.float64),
        difference,
        rtol=1e-4,
        atol=1e-6,
        msg=lambda text: f"the second derivatives of D are not those of finite differences: {text}",
    )


def check_loss(name: str, args: Mapping[str, Any] | None = None) -> None:
    """Check a loss.

    Both sides must give one finite value and gradient per sample that do not depend on the other samples, the same
    weights with one and with two processes (up to 1e-9), and the same bits after a stop and a resume.

    Args:
        name: the name of the loss.
        args: its arguments.
    """
    loss = make_loss(name, args or {})
    assert isinstance(loss, Loss), f"it must return a gan_dist.Loss, and returns {type(loss).__name__}"
    real, fake = (torch.randn(N, dtype=torch.float64, requires_grad=True) for _ in range(2))
    for side in ("D", "G"):
        values = loss_of(side, loss, real, fake)
        assert values.shape == (N,), f"{side}'s loss must be ({N},), one value per sample, and is {tuple(values.shape)}"
        for i in range(N):
            found = torch.autograd.grad(values[i], [real, fake], retain_graph=True, allow_unused=True)
            for gradient in found:
                if gradient is None:
                    continue
                others = [j for j in range(N) if j != i]
                assert not gradient[others].any(), f"{side}'s loss of a sample must not depend on other samples"
                assert gradient.isfinite().all(), f"the gradient of {side}'s loss is not finite"
    arguments = [f"loss.args.{key}={value}" for key, value in (args or {}).items()]
    _check_runs([f"loss.name={name}", "loss.r1_gamma=1", *arguments], [(LOSSES, name)])


def check_dataset(name: str, args: Mapping[str, Any] | None = None, root: str = "data") -> None:
    """Check a data set.

    A run must read it, give the same weights with one and with two processes (up to 1e-9), and the same bits after a
    stop and a resume, with and without data workers.

    Args:
        name: the name of the data set.
        args: its arguments.
        root: `data.root`.
    """
    arguments = [f"data.args.{key}={value}" for key, value in (args or {}).items()]
    settings = [f"data.name={name}", f"data.root={Path(root).absolute()}", "model.conditional=false", *arguments]
    _check_runs([*settings, "loss.r1_gamma=1"], [(DATASETS, name)], workers=("data.workers=0", "data.workers=2"))


def _check_runs(
    settings: Sequence[str], parts: Sequence[tuple[Table, str]], workers: tuple[str, str] = ("", "")
) -> None:
    """Train without a stop, with a stop, and in two processes, and compare the weights.

    Args:
        settings: the settings.
        parts: the parts to check.
        workers: a further setting for the run without a stop, and one for the others.
    """
    modules = dict.fromkeys(table.code(name).__module__ for table, name in parts if name not in table.own)
    assert "__main__" not in modules, "its processes import the part, so it must be in a module, and not in a notebook"
    words = [*_COMMON, *settings, f"plugins=[{','.join(modules)}]"]
    with tempfile.TemporaryDirectory() as folder:
        whole, stopped, shared = (Path(folder, name) for name in ("whole", "stopped", "shared"))
        first, others = ([*words, *filter(None, [setting])] for setting in workers)
        _train(first, whole, 2 * HALF)
        _train(others, stopped, HALF)
        _train(others, stopped, 2 * HALF)
        weights, resumed = _weights(whole), _weights(stopped)
        for key, value in weights.items():
            assert torch.equal(value, resumed[key]), f"{key} has other bits after a stop and a resume"
        _train(others, shared, 2 * HALF, processes=2)
        of_two = _weights(shared)
        for key, value in weights.items():
            if value.is_floating_point():
                away = (value - of_two[key]).abs().max() / value.abs().max().clamp(min=1e-6)
                assert away < 1e-9, f"{key} differs by {away:.1g} between one and two processes"


def _weights(run: Path) -> dict[str, Tensor]:
    """The weights of G and D in a run's last checkpoint, by names such as `G.layer.weight`."""
    checkpoint = max((run / "checkpoints").iterdir())
    files = {name: load_file(checkpoint / f"{name}.safetensors") for name in ("G", "D")}
    return {f"{name}.{key}": value for name, tensors in files.items() for key, value in tensors.items()}


def _train(words: Sequence[str], run: Path, iterations: int, processes: int = 1) -> None:
    """Train a run in processes of their own."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = str(server.getsockname()[1])
    size = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-c", _COMMAND, "train", *words, f"run.dir={run}"]
    command += [f"train.kimg={iterations * BATCH / 1000}"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path), "OMP_NUM_THREADS": "1"}
    started = []
    for rank in range(processes):
        place = {**size, **where, "RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, env={**env, **place}, stdout=pipe, stderr=pipe, text=True))
    outputs = [process.communicate() for process in started]
    for process, (_, error) in zip(started, outputs):
        assert process.returncode == 0, f"a run with {processes} process(es) failed: {error.strip()[-2000:]}"
