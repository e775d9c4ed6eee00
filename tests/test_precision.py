"""Tests of the precisions: the dtypes of all products and convolutions, and the error of gradients against fp64."""

from __future__ import annotations

import math
import re
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from conftest import RECIPES, load_recipe
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from gan_dist.checkpoint.state import State
from gan_dist.data import DataInfo
from gan_dist.data.datasets import describe
from gan_dist.data.points import POINTS
from gan_dist.engine.stats import RunningMeans
from gan_dist.engine.step import Alternation
from gan_dist.errors import ConfigError
from gan_dist.kernels import convolution
from gan_dist.kernels.switches import numerics
from gan_dist.models import pggan
from gan_dist.parallel import distributed
from gan_dist.parallel.accelerate_adapter import forget_state
from gan_dist.parallel.distributed import Distributed
from gan_dist.settings.precision import resolve
from gan_dist.settings.schema import Config, Train
from gan_dist.wiring.data import source_of
from gan_dist.wiring.iteration import make_step
from gan_dist.wiring.networks import make_discriminator, make_generator, make_state

PENALISED = [name for name in RECIPES if (loss := load_recipe(name).loss).r1_gamma or loss.gradient_penalty]
BATCH = 64  # the recipes' own: single roundings that turn a leaky ReLU about are many, and none counts for much
ON_GPU = torch.cuda.is_available()
Batch = tuple[Tensor, Tensor]
needs_gpu = pytest.mark.skipif(not ON_GPU, reason="needs a GPU")


def _start(config: Config, info: DataInfo, precision: str) -> tuple[State, Alternation, Batch]:
    """A run at weights that are not the initial ones, where many of R3GAN's gradients are exactly 0; and a batch."""
    forget_state()
    dist = Distributed(precision, cpu=not ON_GPU)
    assert (dist.device.type == "cuda") == ON_GPU
    state = make_state(config, info, dist)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in (*state.G.parameters(), *state.D.parameters()):
            size = p.abs().mean().item() or 1 / math.sqrt(max(1, p[0].numel() if p.ndim > 1 else 1))
            p.add_(0.5 * size * torch.randn(p.shape, generator=generator).to(p))
        for p in (*state.G.parameters(), *state.D.parameters()):
            p.copy_(p.float())  # the same numbers in every precision
    probs = torch.full((info.num_classes,), 1 / info.num_classes) if config.model.conditional else None
    step = make_step(config, state, dist, RunningMeans(dist), probs)
    step.draws.hflip = False
    shape = (step.growth.batch_size, *info.image_shape)
    if config.data.name in POINTS:
        images = torch.randn(shape, generator=generator)
    else:
        images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    labels = torch.arange(step.growth.batch_size) % max(1, info.num_classes)
    return state, step, (images.to(dist.device), labels.to(dist.device))


def _config(recipe: str, *settings: str) -> Config:
    config = load_recipe(recipe, f"train.batch_size={BATCH}", *settings)
    config.growth.stable_kimg = config.growth.fade_kimg = 0
    config.growth.batch_sizes = []
    return config


def _gradients(config: Config, precision: str, watch: Any = None) -> dict[str, Tensor]:
    """The whole gradients of D's and of G's step, each at the same weights: fp64, flat, on the CPU."""
    info = describe(source_of(config.data))
    found = {}
    for name in ("D", "G"):
        state, step, batch = _start(config, info, precision)
        with numerics(precision, exact=True), watch or nullcontext():
            if name == "D":
                step.d_step(*batch)
            else:
                step.g_step(step.draws.to_float(batch[0], step.draws.like.dtype), step.draws.labels_of(batch[1]))
        if name == "D" and config.loss.gradient_penalty:
            assert step.stats.read()["gradient_penalty"] > 0.1, "|grad D| is not near 1, where all is 0"
        parameters = [p.grad for p in getattr(state, name).parameters() if p.grad is not None]
        found[name] = torch.cat([p.double().flatten().cpu() for p in parameters])
    return found


def _distance(found: Tensor, exact: Tensor) -> float:
    return ((found - exact).norm() / exact.norm()).item()


def _by_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed.convolution, "twice_differentiable", nullcontext)


@pytest.mark.parametrize("recipe", PENALISED)
def test_penalised_gradients_are_torchs_own(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = _gradients(_config(recipe), "fp64")
    _by_torchs_own(monkeypatch)
    theirs = _gradients(_config(recipe), "fp64")
    for name, gradient in ours.items():
        assert gradient.norm() > 0
        assert _distance(gradient, theirs[name]) < 1e-10


ROUNDING = {"tf32": 2**-11, "bf16": 2**-8}


@pytest.mark.parametrize("precision", ["bf16", pytest.param("tf32", marks=needs_gpu)])
@pytest.mark.parametrize("recipe", RECIPES)
def test_error_of_gradients_beside_fp64(recipe: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 32 roundings, and at most twice the error of torch's own operations under its own autocast."""
    config = _config(recipe)
    exact, ours = _gradients(config, "fp64"), _gradients(config, precision)
    _by_torchs_own(monkeypatch)
    theirs = _gradients(config, precision)
    for name in exact:
        error, usual = (_distance(found[name], exact[name]) for found in (ours, theirs))
        print(f"{recipe} {precision} {name}: {error:.2e}, by torch's own operations {usual:.2e}")
        assert error <= 32 * ROUNDING[precision]
        assert error <= 2 * usual


class _Products(TorchDispatchMode):
    """The types of everything that goes into a convolution or a matrix product and comes out of one."""

    NAMES = ("convolution", "convolution_backward", "mm", "addmm", "bmm", "baddbmm", "_linear_pointwise")

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.seen: dict[str, set[torch.dtype]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._overloadpacket.__name__
        tensors = [x for x in (*args, *(out if isinstance(out, tuple) else [out])) if isinstance(x, Tensor)]
        # The gradient of an embedding is a product of one-hot codes, and stays in the precision of its weights.
        of_embedding = name == "mm" and len(tensors[0]) == self.num_classes
        if name in self.NAMES and not of_embedding:
            self.seen.setdefault(name, set()).update(x.dtype for x in tensors)
        return out


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", pytest.param("fp16", marks=needs_gpu)])
@pytest.mark.parametrize("recipe", RECIPES)
def test_precision_reaches_every_product_of_a_step(recipe: str, precision: str) -> None:
    """Forward, backward, and where penalties differentiate twice, which in fp16 stays in fp32."""
    config = _config(recipe, "train.batch_size=12")
    watch = _Products(describe(source_of(config.data)).num_classes)
    _gradients(config, precision, watch)
    wanted = {"bf16": {torch.bfloat16}, "fp16": {torch.float16}}.get(precision, {torch.float32})
    if precision == "fp16" and recipe in PENALISED:
        wanted = {torch.float16, torch.float32}
    assert watch.seen
    assert {name: types for name, types in watch.seen.items() if not types <= wanted} == {}
    assert set.union(*watch.seen.values()) == wanted


def _watch_wide_inputs(G: nn.Module, D: nn.Module, dtype: torch.dtype) -> set[str]:
    """The names of layers that will have got an input of another type."""
    wide: set[str] = set()
    for network in (G, D):
        for name, module in network.named_modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.BatchNorm2d | pggan.Conv):
                module.register_forward_pre_hook(
                    lambda _, inputs, name=name: wide.add(name) if inputs[0].dtype != dtype else None
                )
    return wide


TAKES_IMAGES_OR_LATENTS = r"first|layers\.0|from_image\.\d|blocks\.0\.(conv1|shortcut)"
AFTER_A_SUM = r"last"  # D's last layer takes what is summed up in fp32


@pytest.mark.parametrize("recipe", RECIPES)
def test_activations_stay_in_half_precision(recipe: str) -> None:
    """No bias, embedding or label turns what goes from layer to layer into fp32."""
    config = _config(recipe, "train.batch_size=12")
    state, step, batch = _start(config, describe(source_of(config.data)), "bf16")
    wide = _watch_wide_inputs(state.G, state.D, torch.bfloat16)
    step(iter([batch] * step.game.n_critic))
    assert wide
    assert [name for name in wide if not re.fullmatch(f"{TAKES_IMAGES_OR_LATENTS}|{AFTER_A_SUM}", name)] == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("recipe", RECIPES)
def test_activations_stay_in_half_precision_on_a_gpu(recipe: str, dtype: torch.dtype) -> None:
    """Autocast on a GPU has other lists than on a CPU: a forward pass of shapes alone, as a GPU would run it."""
    config = _config(recipe)
    info = describe(source_of(config.data))
    classes = info.num_classes if config.model.conditional else 0
    with FakeTensorMode(), torch.device("cuda"):
        G = make_generator(config.model, info.image_shape, classes)
        D = make_discriminator(config.model, info.image_shape, classes)
        wide = _watch_wide_inputs(G, D, dtype)
        y = torch.zeros(12, dtype=torch.int64) if classes else None
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_dtype("cuda", dtype)
        try:
            with convolution.twice_differentiable():
                G(torch.zeros(12, config.model.z_dim), y)
                D(torch.zeros(12, *info.image_shape), y)
        finally:
            torch.set_autocast_enabled("cuda", False)
    assert wide
    assert [name for name in wide if not re.fullmatch(f"{TAKES_IMAGES_OR_LATENTS}|{AFTER_A_SUM}", name)] == []


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_stays_in_full_precision(recipe: str) -> None:
    """In bf16: weights, moments, the average, logits, penalties and other figures."""
    config = _config(recipe, "train.batch_size=12")
    state, step, batch = _start(config, describe(source_of(config.data)), "bf16")
    step(iter([batch] * step.game.n_critic))
    for module in (state.G, state.D, state.G_ema):
        assert {t.dtype for t in module.state_dict().values() if t.is_floating_point()} == {torch.float32}
    moments = [m for optimizer in (state.opt_G, state.opt_D) for v in optimizer.state.values() for m in v.values()]
    assert {m.dtype for m in moments} == {torch.float32}
    y = batch[1] if config.model.conditional else None
    assert state.D(step.draws.real_images(batch[0]), y).dtype == torch.float32
    assert {total.dtype for total in step.stats._sums.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("settings", "on_gpu", "launched", "wanted"),
    [
        ({}, False, None, "fp32"),
        ({}, True, None, "tf32"),
        ({"gpu_precision": "bf16"}, True, "no", "bf16"),
        ({"gpu_precision": "bf16"}, True, "bf16", "bf16"),
        ({"gpu_precision": "bf16"}, False, "no", "fp32"),
        ({"precision": "bf16"}, False, "bf16", "bf16"),
        ({"precision": "fp64"}, True, "no", "fp64"),
    ],
)
def test_precision_of_a_run(
    settings: dict[str, Any], on_gpu: bool, launched: str | None, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if launched:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    assert resolve(Train(**settings), on_gpu) == wanted


@pytest.mark.parametrize(
    ("settings", "on_gpu", "text"),
    [
        ({"gpu_precision": "tf32"}, True, "mixed_precision=fp16, but train.precision=auto means tf32 here"),
        ({"gpu_precision": "fp16"}, False, "mixed_precision=fp16, but train.precision=auto means fp32 here"),
        (
            {"precision": "bf16"},
            True,
            "mixed_precision=fp16, but train.precision=bf16: .*, or set train.precision=fp16",
        ),
    ],
)
def test_launcher_that_was_told_another_precision(
    settings: dict[str, Any], on_gpu: bool, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(ConfigError, match=text):
        resolve(Train(**settings), on_gpu)
