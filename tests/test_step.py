"""Tests of one iteration: it equals a plain implementation of the algorithm, and each step changes only its network."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gan_dist import rng
from gan_dist.checkpoint.state import State
from gan_dist.data import DataInfo
from gan_dist.engine.draws import Drawn
from gan_dist.engine.stats import RunningMeans
from gan_dist.engine.step import Alternation
from gan_dist.parallel.distributed import Distributed
from gan_dist.rng import Purpose
from gan_dist.settings.config import load_config
from gan_dist.settings.schema import Config
from gan_dist.wiring.iteration import make_step
from gan_dist.wiring.networks import make_state

INFO = DataInfo((1, 8, 8), 4, 100)
PROBS = torch.full((4,), 0.25)


@pytest.fixture(scope="module")
def dist() -> Distributed:
    return Distributed("fp64", cpu=True)


def _config(*overrides: str) -> Config:
    sizes = ["train.batch_size=12", "model.z_dim=6", "model.g_widths=[16]", "model.d_widths=[16]"]
    return load_config(None, ["loss.r1_gamma=1", *sizes, *overrides])


def _step(config: Config, state: State, dist: Distributed) -> Alternation:
    step = make_step(config, state, dist, RunningMeans(dist), PROBS if config.model.conditional else None)
    penalties = replace(step.game.penalties, gamma_scale=lambda nimg: 1 + nimg / 100)
    step.game = replace(step.game, penalties=penalties)
    return step


def _batches(count: int = 4) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    shape = (count, 12, *INFO.image_shape)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return list(zip(images, torch.randint(0, 4, (count, 12), generator=generator)))


def _weights(state: State) -> list[Tensor]:
    return [p.detach().clone() for module in (state.G, state.D) for p in module.parameters()]


def test_iteration_is_algorithm_1(dist: Distributed) -> None:
    """Two iterations equal the textbook's, written with sigmoids, BCE and its own optimizers, on the same latents."""
    config = _config("loss.r1_gamma=0", "loss.d_half=true")
    state = make_state(config, INFO, dist)
    G, D = copy.deepcopy(state.G), copy.deepcopy(state.D)
    step = _step(config, state, dist)
    batches = iter(_batches())
    for _ in range(2):
        step(batches)

    opt_G = torch.optim.Adam(G.parameters(), lr=2e-4, betas=(0.5, 0.999))
    opt_D = torch.optim.Adam(D.parameters(), lr=2e-4, betas=(0.5, 0.999))
    for i, (images, labels) in enumerate(_batches()[:2]):

        def noise(purpose: Purpose, number: int) -> Tensor:
            return rng.latents(0, purpose, 12 * number, 12, 6)

        def classes(purpose: Purpose, number: int) -> Tensor:
            return rng.labels(0, purpose, 12 * number, 12, rng.label_thresholds(PROBS))

        x = images.double() / 127.5 - 1
        y = classes(Purpose.D_LABEL, i)
        fake = G(noise(Purpose.D_LATENT, i), y).detach()
        p_real, p_fake = D(x, labels).sigmoid(), D(fake, y).sigmoid()
        ones, zeros = torch.ones_like(p_real), torch.zeros_like(p_real)
        opt_D.zero_grad()
        (0.5 * (F.binary_cross_entropy(p_real, ones) + F.binary_cross_entropy(p_fake, zeros))).backward()
        opt_D.step()
        y = classes(Purpose.G_LABEL, i + 1)
        opt_G.zero_grad()
        F.binary_cross_entropy(D(G(noise(Purpose.G_LATENT, i + 1), y), y).sigmoid(), ones).backward()
        opt_G.step()
    expected = [p.detach() for module in (G, D) for p in module.parameters()]
    for ours, theirs in zip(_weights(state), expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
    assert state.nimg == 24


GAMES = [
    [],
    ["model.conditional=false"],
    ["loss.penalty_interval=2"],
    ["loss.name=minimax"],
    ["loss.name=least_squares", "loss.label_smoothing=0.1"],
    ["loss.name=hinge", "loss.r2_gamma=1"],
    ["loss.name=wasserstein", "loss.r1_gamma=0", "loss.clip_weights=0.01"],
    ["loss.name=wasserstein", "loss.r1_gamma=0", "loss.gradient_penalty=10", "train.n_critic=2"],
    ["loss.name=relativistic", "loss.r1_gamma=1", "loss.r2_gamma=1"],
    ["loss.name=relativistic", "model.conditional=false", "train.n_critic=2"],
    ["loss.name=relativistic", "train.augment=[color,translation,cutout]", "loss.gradient_penalty=1"],
    ["loss.name=wasserstein", "loss.r1_gamma=0", "loss.gradient_penalty=10", "loss.drift=0.001"],
]


@pytest.mark.parametrize("overrides", GAMES)
def test_micro_batches_change_nothing(overrides: list[str], dist: Distributed) -> None:
    results = []
    for size in (0, 12, 4, 3):
        config = _config(f"train.micro_batch_size={size}", *overrides)
        state = make_state(config, INFO, dist)
        step = _step(config, state, dist)
        batches = iter(_batches(6))
        for _ in range(3):
            step(batches)
        results.append(_weights(state))
    for other in results[1:]:
        for a, b in zip(results[0], other):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_each_step_changes_its_own_network_alone(dist: Distributed) -> None:
    config = _config()
    state = make_state(config, INFO, dist)
    step = _step(config, state, dist)
    G, D = copy.deepcopy(state.G.state_dict()), copy.deepcopy(state.D.state_dict())
    step.d_step(*_batches()[0])
    assert all(torch.equal(G[k], v) for k, v in state.G.state_dict().items())
    assert not any(torch.equal(D[k], v) for k, v in state.D.state_dict().items())
    assert all(p.grad is None for p in state.G.parameters()), "G has no graph in the D step"
    D = copy.deepcopy(state.D.state_dict())
    gradients = [p.grad.clone() for p in state.D.parameters() if p.grad is not None]
    step.g_step(*_batches()[0])
    assert all(torch.equal(D[k], v) for k, v in state.D.state_dict().items())
    assert not any(torch.equal(G[k], v) for k, v in state.G.state_dict().items())
    now = [p.grad for p in state.D.parameters() if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(gradients, now, strict=True)), "no gradient of D in the G step"


def test_n_critic_counts_every_real_image(dist: Distributed) -> None:
    config = _config("train.n_critic=3")
    state = make_state(config, INFO, dist)
    batches = iter(_batches())
    _step(config, state, dist)(batches)
    assert state.nimg == 36
    assert len(list(batches)) == 1


def test_lazy_r1_is_as_strong_on_average(dist: Distributed) -> None:
    """In a penalised step the gradient has `interval` times the penalty's share; in the others it has none."""

    def gradient(gamma: float, interval: int, nimg: int) -> Tensor:
        config = _config(f"loss.r1_gamma={gamma}", f"loss.penalty_interval={interval}")
        state = make_state(config, INFO, dist)
        state.nimg = nimg
        _step(config, state, dist).d_step(*_batches()[0])
        return torch.cat([p.grad.flatten() for p in state.D.parameters() if p.grad is not None])

    plain, every = gradient(0, 1, 0), gradient(2.0, 1, 0)
    torch.testing.assert_close(gradient(2.0, 4, 0) - plain, 4 * (every - plain))
    torch.testing.assert_close(gradient(2.0, 4, 12), gradient(0, 1, 12))


def test_no_draw_is_used_twice(dist: Distributed) -> None:
    config = _config()
    state = make_state(config, INFO, dist)
    seen: list[Tensor] = []
    forward = state.G.forward

    def record(z: Tensor, y: Tensor | None = None) -> Tensor:
        seen.append(z.clone())
        return forward(z, y)

    state.G.forward = record  # type: ignore[method-assign]
    step = _step(config, state, dist)
    batches = iter(_batches())
    for _ in range(3):
        step(batches)
    rows = torch.cat(seen)
    assert len(rows) == 2 * 3 * 12
    assert len(torch.unique(rows, dim=0)) == len(rows)


@pytest.mark.parametrize("name", ["Adam", "RMSprop"])
def test_skipped_step_leaves_the_network_and_its_moments(name: str, dist: Distributed) -> None:
    """With and without a fused kernel, which skips without telling the host."""
    config = _config("train.on_nonfinite=skip", f"optim.D.name={name}", f"optim.G.name={name}")
    state = make_state(config, INFO, dist)
    step = _step(config, state, dist)
    batches = iter(_batches())
    step(batches)
    before = copy.deepcopy((state.D.state_dict(), state.opt_D.state_dict()["state"]))
    G = copy.deepcopy(state.G.state_dict())
    first = next(state.D.parameters()).requires_grad_(True)  # G's step has frozen it
    hook = first.register_hook(lambda gradient: gradient * torch.nan)
    norm_D, norm_G = step(batches)
    hook.remove()
    torch.testing.assert_close((state.D.state_dict(), state.opt_D.state_dict()["state"]), before, rtol=0, atol=0)
    assert not torch.equal(state.G.state_dict()["layers.0.weight"], G["layers.0.weight"])
    assert not norm_D.isfinite()
    assert norm_G.isfinite()
    assert step.stats.read()["skipped_D"] == 0.5, "one of two"
    step(batches)
    assert not torch.equal(state.D.state_dict()["layers.0.weight"], before[0]["layers.0.weight"])


def test_infinite_gradient_is_skipped_too(dist: Distributed) -> None:
    config = _config("train.on_nonfinite=skip")
    state = make_state(config, INFO, dist)
    step = _step(config, state, dist)
    next(state.D.parameters()).register_hook(lambda gradient: gradient * torch.inf)
    before = copy.deepcopy(state.D.state_dict())
    step.d_step(*_batches()[0])
    assert all(torch.equal(before[k], v) for k, v in state.D.state_dict().items())


def test_overflow_in_one_network_skips_its_step_alone() -> None:
    """In fp16 D and G have loss scales of their own; without an overflow they change nothing, being powers of two."""
    config, batches = _config("loss.r1_gamma=0"), _batches()

    def run(precision: str, overflow: bool) -> tuple[State, Alternation]:
        dist = Distributed("fp32", cpu=True)
        dist.precision = precision  # the networks run in fp32, as fp16 needs a GPU; the scaling is the real one
        state = make_state(config, INFO, dist)
        step = _step(config, state, dist)
        if overflow:
            next(state.D.parameters()).register_hook(lambda gradient: gradient * torch.inf)
        step(iter(batches))
        return state, step

    start = make_state(config, INFO, Distributed("fp32", cpu=True))
    plain, _ = run("fp32", overflow=False)
    scaled, step = run("fp16", overflow=False)
    assert all(torch.equal(a, b) for a, b in zip(_weights(scaled), _weights(plain)))
    assert (step.update_D.optimizer.scaler.get_scale(), step.update_G.optimizer.scaler.get_scale()) == (2**16, 2**16)
    means = step.stats.read()
    assert (means["skipped_D"], means["skipped_G"]) == (0, 0)

    broken, step = run("fp16", overflow=True)
    assert all(torch.equal(a, b) for a, b in zip(broken.D.parameters(), start.D.parameters()))
    assert not any(torch.equal(a, b) for a, b in zip(broken.G.parameters(), start.G.parameters()))
    assert (step.update_D.optimizer.scaler.get_scale(), step.update_G.optimizer.scaler.get_scale()) == (2**15, 2**16)
    means = step.stats.read()
    assert (means["skipped_D"], means["skipped_G"]) == (1, 0)


def test_drift_is_the_square_of_real_logits(dist: Distributed) -> None:
    """Its gradient is what a critic's gets beside it, and the distance is logged without it."""
    images, labels = _batches()[0]
    gradients, distances = [], []
    for drift in (0.0, 0.5):
        config = _config("loss.name=wasserstein", "loss.r1_gamma=0", "loss.clip_weights=1", f"loss.drift={drift}")
        state = make_state(config, INFO, dist)
        step = _step(config, state, dist)
        D = copy.deepcopy(state.D)
        step.d_step(images, labels)
        gradients.append([p.grad.clone() for p in state.D.parameters()])
        distances.append(step.stats.read()["distance"])
    (0.5 * D(images.double() / 127.5 - 1, labels).square().mean()).backward()
    for without, with_drift, p in zip(*gradients, D.parameters()):
        torch.testing.assert_close(with_drift - without, p.grad)
    assert distances[0] == pytest.approx(distances[1])


def test_gamma_follows_its_schedule(dist: Distributed) -> None:
    """At 100 images the test's gammas are twice as large as at 0: so is what R1 adds to the gradient."""
    images, labels = _batches()[0]
    added = []
    for nimg in (0, 100):
        found = []
        for gamma in (0, 3):
            config = _config(f"loss.r1_gamma={gamma}", "train.batch_size=12")
            state = make_state(config, INFO, dist)
            state.nimg = nimg
            state.D.requires_grad_(True)
            step = _step(config, state, dist)
            drawn = Drawn(torch.ones(12, 6, dtype=torch.float64), torch.zeros(12, dtype=torch.int64), None)
            step.draws.for_D = lambda *_, drawn=drawn: drawn  # type: ignore[method-assign]
            step.d_step(images, labels)
            found.append(torch.cat([p.grad.flatten() for p in state.D.parameters()]))
        added.append(found[1] - found[0])
    torch.testing.assert_close(added[1], 2 * added[0])


def test_average_follows_g_by_images_seen(dist: Distributed) -> None:
    """Two D steps of 12 images are one half-life here, so the average goes half of the way to G."""
    config = _config("train.n_critic=2", "ema.half_life_kimg=0.024", "ema.rampup=0")
    state = make_state(config, INFO, dist)
    assert not state.G_ema.training
    before = copy.deepcopy(state.G.state_dict())
    _step(config, state, dist)(iter(_batches()))
    for name, value in state.G_ema.state_dict().items():
        torch.testing.assert_close(value, (before[name] + state.G.state_dict()[name]) / 2)


@pytest.mark.parametrize(
    ("settings", "same"),
    [([], False), (["loss.gradient_penalty=10"], True), (["loss.name=relativistic"], True)],
)
def test_pairs_have_one_label_where_they_are_compared_or_mixed(
    settings: list[str], same: bool, dist: Distributed
) -> None:
    config = _config("loss.r1_gamma=0", *settings)
    state = make_state(config, INFO, dist)
    seen: list[Tensor] = []
    state.D.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    images, labels = _batches()[0]
    _step(config, state, dist).d_step(images, labels)
    both = next(y for y in seen if len(y) == 24)
    assert torch.equal(both[:12], labels)
    assert torch.equal(both[12:], labels) == same


def test_every_process_draws_for_its_own_images(dist: Distributed) -> None:
    """The second of two processes: its half of the batch, in micro-batches, by numbers in the run."""
    config = _config("train.micro_batch_size=4")
    step = _step(config, make_state(config, INFO, dist), dist)
    step.growth.share = lambda count: range(count // 2, count)
    assert [micro.part for micro in step.growth.micro_batches()] == [slice(0, 4), slice(4, 6)]
    assert [micro.last for micro in step.growth.micro_batches()] == [False, True]
    seen: list[Tensor] = []
    step.state.G.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    step.state.nimg = 24
    step.d_step(*(half[6:] for half in _batches()[0]))
    torch.testing.assert_close(torch.cat(seen), rng.latents(0, Purpose.D_LATENT, 30, 6, 6))


@pytest.mark.parametrize("count", [7, 64, 700])
def test_blocks_give_the_drawn_numbers_whatever_the_batches(count: int, dist: Distributed) -> None:
    draws = _step(_config(), make_state(_config(), INFO, dist), dist).draws
    for retries, first in [(0, 0), (0, count), (0, 511), (0, 0), (1, 0), (1, 5 * count)]:
        draws.state.retries = retries
        draws.scalars.write({"row": draws.begin(first, count)})
        part = slice(count // 3, count)
        for drawn, purpose in (
            (draws.for_D(part, None, False), Purpose.D_LATENT),
            (draws.for_G(part, None), Purpose.G_LATENT),
        ):
            expected = rng.latents(draws.seed, purpose, first + part.start, count - part.start, 6)
            assert torch.equal(drawn.z, expected)
