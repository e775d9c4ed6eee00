"""Compiled steps: the same training, the same files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from conftest import DISTINCT, OF_EACH_ARCHITECTURE, TINY, load_recipe
from program import Program
from torch import Tensor, nn
from torch._inductor import async_compile, config, utils
from torch.nn import functional as F
from torch.utils._pytree import tree_flatten

from gan_dist.checkpoint.write import take_snapshot, write_checkpoint
from gan_dist.data.datasets import describe
from gan_dist.engine.compiled import trace
from gan_dist.game.regularizers import PENALTIES, interpolate, squared_gradient_norms
from gan_dist.kernels.resampling import double, halve
from gan_dist.kernels.switches import numerics
from gan_dist.models._layers import Embedding, double_nearest, spectral_norm
from gan_dist.models.sngan import Attention
from gan_dist.parallel.distributed import Distributed
from gan_dist.parts import Registered
from gan_dist.settings.config import as_yaml
from gan_dist.wiring.build import WiredRun, build
from gan_dist.wiring.data import source_of

QUIET = [f"{section}.every_kimg=0" for section in ("log", "sample", "metrics", "checkpoint")]
SETTINGS = [*QUIET, "tracking.wandb=disabled", "train.batch_size=8", "train.precision=fp64", "train.device=cpu"]
# Every other D step has a penalty whose gamma decays, and learning rates change in each step.
MOVING = ["loss.penalty_interval=2", "optim.D.schedule=cosine", "optim.G.warmup_kimg=0.05", "loss.gamma_decay=0.1"]
ITERATIONS = 6

needs_compiler = pytest.mark.skipif(
    not (torch.cuda.is_available() or shutil.which("g++") or shutil.which("clang++")),
    reason="needs a C++ compiler: g++",
)


@pytest.fixture(scope="module")
def dist() -> Distributed:
    return Distributed("fp64", cpu=True)


def _start(
    folder: Path, dist: Distributed, recipe: str, compiled: bool, *overrides: str, checkpoint: Path | None = None
) -> WiredRun:
    config = load_recipe(recipe, *SETTINGS, *MOVING, *overrides, f"train.compile={str(compiled).lower()}")
    steps = ITERATIONS if not config.growth.stable_kimg else 3 * ITERATIONS  # through all stages
    config.train.kimg = 8 * steps * config.train.n_critic / 1000
    folder.mkdir(exist_ok=True)
    return build(config, describe(source_of(config.data)), folder, checkpoint, dist)


def _go_on(run: WiredRun, iterations: int) -> dict[str, Tensor]:
    """Train; returns the weights and buffers of both networks and of G_ema."""
    step = run.trainer.step
    compiled = step.update_D.compiled, step.update_G.compiled
    for _ in range(iterations):
        step(run.trainer.batches)
    assert (step.update_D.compiled, step.update_G.compiled) == compiled, "compiled steps are not given up"
    run.trainer.batches.close()
    found = {f"{n}.{k}": v for n in ("G", "D", "G_ema") for k, v in getattr(run.state, n).state_dict().items()}
    return {name: tensor.clone() for name, tensor in found.items()}


def _assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys(), "no prefix in the names of weights"
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-9, atol=1e-12)


class Traces:
    """Stands in for torch.compile: keeps the traces, which then run as they are.

    Attributes:
        operators: the names of all operators in them.
    """

    def __init__(self) -> None:
        self.operators: set[str] = set()

    def __call__(self, graph: torch.fx.GraphModule, **_: Any) -> torch.fx.GraphModule:
        self.operators |= {str(node.target) for node in graph.graph.nodes if node.op == "call_function"}
        return graph


def test_gradient_of_a_penalty_arrives(dist: Distributed, tmp_path: Path) -> None:
    """What R1 adds to D's gradient is the same in a traced step, and not zero."""
    found = []
    for compiled in (False, True):
        gradients = []
        for gamma in (0, 10):
            run = _start(tmp_path / f"{gamma}-{compiled}", dist, "digits", compiled, f"loss.r1_gamma={gamma}")
            with mock.patch.object(torch, "compile", Traces()):
                run.trainer.step.d_step(*next(run.trainer.batches))
            assert (run.trainer.step.update_D.compiled is not None) == compiled
            run.trainer.batches.close()
            gradients.append(torch.cat([p.grad.flatten() for p in run.state.D.parameters() if p.grad is not None]))
        found.append(gradients[1] - gradients[0])
    assert found[0].norm() > 1e-3
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-12)


def test_penalty_of_a_user_is_traced_too(dist: Distributed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It differentiates D twice, at points between real and generated images; without it the weights are others."""

    def penalty(D: Any, x_real: Tensor, x_fake: Tensor, y: Tensor, u: Tensor, *, weight: float) -> Tensor:
        x = interpolate(x_real, x_fake, u).requires_grad_()
        return weight * squared_gradient_norms(D(x, y), x)[0]

    monkeypatch.setitem(PENALTIES._registered, "slope", Registered(penalty, penalty))
    ended = []
    for compiled, weight in ((False, 3), (True, 3), (False, 0)):
        words = f"loss.penalties.slope.weight={weight}"
        run = _start(tmp_path / f"{compiled}-{weight}", dist, "digits", compiled, words)
        with mock.patch.object(torch, "compile", Traces()):
            ended.append(_go_on(run, 4))
    _assert_close(ended[1], ended[0])
    assert any(not torch.allclose(ended[2][name], tensor) for name, tensor in ended[0].items())


def test_loss_scale_is_no_constant_of_a_trace(tmp_path: Path) -> None:
    """In fp16 the scale changes. The networks run in fp32 here, as fp16 needs a GPU; the scaling is the real one."""
    found = []
    for compiled in (False, True):
        dist = Distributed("fp32", cpu=True)
        dist.precision = "fp16"
        run = _start(tmp_path / str(compiled), dist, "digits", compiled, "train.precision=fp32")
        with mock.patch.object(torch, "compile", Traces()):
            _go_on(run, 2)
            for scaler in run.state.scalers.values():
                scaler.update(2.0**4)
            found.append([norm.item() for _ in range(4) for norm in run.trainer.step(run.trainer.batches)])
        assert (run.trainer.step.update_D.compiled is not None) == compiled
        run.trainer.batches.close()
    assert found[1] == pytest.approx(found[0], rel=1e-3)


# The code of D's first steps of these recipes is read; a network that grows has few layers then. With `_Rest` their
# traces have all operators of all recipes' traces.
READ = ["dcgan_cifar10", "digits_augment", "pggan_celeba"]


class _Rest(nn.Module):
    """What occurs in the other architectures and in G's steps, once each, in a network whose code is soon generated.

    From SNGAN and SAGAN spectral normalization, projection and attention, from R3GAN the resampling, from PGGAN the
    fading in of a stage, from the augmentation of colours the unbinding, and from G the tanh.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.conv, self.attention = spectral_norm(nn.Conv2d(3, 8, 3, padding=1)), Attention(8)
        self.last, self.embedding = spectral_norm(nn.Linear(8, 1)), spectral_norm(Embedding(4, 8))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = double_nearest((x * self.scale).tanh())
        x, _ = torch.stack([torch.lerp(double(halve(x)), x, self.scale), x]).unbind()
        features = F.relu(F.avg_pool2d(self.attention(self.conv(x)), 2)).sum((2, 3))
        return self.last(features).squeeze(1) + (self.embedding(y) * features).sum(1)


def _compile_rest() -> None:
    """Trace the hinge loss of `_Rest`, compile it and call it."""
    D = _Rest().double()
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    inputs = (x, torch.arange(4)), torch.ones((), dtype=torch.float64)
    # The zeros stand for a second derivative that does not exist, as of PGGAN while a stage fades in.
    loss = lambda x, y: ((F.relu(1 - D(x, y)) + torch.zeros(4, dtype=x.dtype)).mean(), {})  # noqa: E731
    flat, form = tree_flatten(inputs)
    trace(loss, nn.ModuleList([D]), D, flat, form)(flat)


@pytest.fixture(scope="module")
def read(dist: Distributed, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The operators in the traces whose code is read."""
    traces = Traces()
    with mock.patch.object(torch, "compile", traces):
        _compile_rest()
        for recipe in READ:
            run = _start(tmp_path_factory.mktemp(recipe), dist, recipe, True)
            run.trainer.step.d_step(*next(run.trainer.batches))
            run.trainer.batches.close()
    return traces.operators


@pytest.mark.slow
@pytest.mark.parametrize("recipe", DISTINCT)
def test_traced_steps_train_as_others_do(recipe: str, read: set[str], dist: Distributed, tmp_path: Path) -> None:
    """Over a schedule, a lazy interval and all stages of growth; and in micro-batches, of which the last is shorter."""
    split = ["train.micro_batch_size=3"] if recipe in OF_EACH_ARCHITECTURE.values() and "pggan" not in recipe else []
    eager, traced = (_start(tmp_path / str(c), dist, recipe, c, *split) for c in (False, True))
    iterations = 2 * ITERATIONS if "pggan" in recipe else ITERATIONS
    traces = Traces()
    with mock.patch.object(torch, "compile", traces):
        found = _go_on(traced, iterations)
    _assert_close(found, _go_on(eager, iterations))
    assert traced.trainer.step.stats.read() == pytest.approx(eager.trainer.step.stats.read(), rel=1e-5, abs=1e-6)
    assert traced.trainer.step.update_G.compiled, "it has not failed"
    assert traces.operators - read == set(), "the test below reads the code of all operators"


@pytest.mark.slow
@pytest.mark.parametrize("of", [*READ, "the rest"])
def test_generated_code_adds_in_a_fixed_order(of: str, dist: Distributed, tmp_path: Path) -> None:
    """Without atomic additions, whose order differs from run to run. The code is generated, but not compiled."""
    if of == "the rest":
        compile_and_call: Callable[[], Any] = _compile_rest
    else:
        run = _start(tmp_path / "run", dist, of, True)
        compile_and_call = lambda: run.trainer.step.d_step(*next(run.trainer.batches))  # noqa: E731
    nothing = mock.patch.object(async_compile.AsyncCompile, "cpp_pybinding", return_value=lambda *_: None)
    # Without vectors the code is shorter; what it adds is the same.
    with nothing, config.patch({"fx_graph_cache": False, "cpp.simdlen": 1}), numerics("fp64", exact=True):
        _, texts = utils.run_and_get_code(compile_and_call)
    assert texts
    assert not any("atomic_add" in text for text in texts)


@pytest.mark.slow
@needs_compiler
def test_compiled_steps_train_as_others_do_and_resume_exactly(dist: Distributed, tmp_path: Path) -> None:
    """Of an MLP, for which a compiler has little to do. Convolutions are calls of torch's, in compiled code too."""
    small = ["loss.penalty_interval=1"]
    eager = _go_on(_start(tmp_path / "eager", dist, "digits", False, *small), ITERATIONS)
    compiled = _go_on(_start(tmp_path / "compiled", dist, "digits", True, *small), ITERATIONS)
    _assert_close(compiled, eager)

    stopped = _start(tmp_path / "stopped", dist, "digits", True, *small)
    _go_on(stopped, 3)
    checkpoint = write_checkpoint(
        tmp_path / "stopped", take_snapshot(stopped.state, stopped.save.facts), as_yaml(load_recipe("digits"))
    )
    resumed = _go_on(_start(tmp_path / "stopped", dist, "digits", True, *small, checkpoint=checkpoint), 3)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in compiled.items())


@pytest.mark.slow
def test_without_a_compiler_there_is_one_line_and_the_run_goes_on(program: Program, tmp_path: Path) -> None:
    caches = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}
    tiny = ["train", *TINY, "train.kimg=0.2", "train.compile=true"]
    result = program.process(*tiny, env={"PATH": "/nowhere", "CXX": "/nowhere/c++", **caches})
    assert result.returncode == 0, result.stderr
    lines = [
        line for line in (result.stdout + result.stderr).splitlines() if "compile" in line.partition("; started by")[0]
    ]
    assert len(lines) == 1, lines
    assert "train.compile: the losses are not compiled, and run as they are" in lines[0]
