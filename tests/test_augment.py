"""Differentiable augmentation against plain slices and numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import load_recipe
from torch import Tensor

from gan_dist import rng
from gan_dist.data import DataInfo
from gan_dist.data.datasets import describe
from gan_dist.data.preprocess import points_to_float
from gan_dist.engine.draws import Draws
from gan_dist.engine.scalars import Scalars
from gan_dist.game.augment import NUMBERS, color, cutout, make_augmentations, translation
from gan_dist.parallel.distributed import Distributed
from gan_dist.rng import Purpose
from gan_dist.settings.config import load_config
from gan_dist.wiring.build import build
from gan_dist.wiring.data import source_of
from gan_dist.wiring.networks import make_state


def _images(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def _u(*values: float) -> Tensor:
    """Random bits that stand for these numbers in [0, 1)."""
    return torch.tensor([[(int(value * 2**64) + 2**63) % 2**64 - 2**63 for value in values]])


def test_color_by_hand() -> None:
    x = _images(1, 3, 4, 6)
    torch.testing.assert_close(color(x, _u(0.5, 0.5, 0.5)), x)
    torch.testing.assert_close(color(x, _u(0.75, 0.5, 0.5)), x + 0.25)
    torch.testing.assert_close(color(x, _u(0.5, 0.0, 0.5)), x.mean(1, keepdim=True).expand_as(x))
    torch.testing.assert_close(color(x, _u(0.5, 0.5, 0.0)), x.mean() + (x - x.mean()) / 2)
    torch.testing.assert_close(color(x[:, :1], _u(0.5, 0.1, 0.5)), x[:, :1], msg="one channel has no saturation")


@pytest.mark.parametrize(("u", "down", "right"), [((0.5, 0.5), 0, 0), ((0.0, 0.99), -2, 3), ((0.99, 0.0), 2, -3)])
def test_translation_moves_and_fills_with_zeros(u: tuple[float, float], down: int, right: int) -> None:
    x = _images(1, 2, 16, 24)
    expected = np.zeros((1, 2, 16, 24))
    rows, columns = (slice(max(by, 0), size + min(by, 0)) for by, size in ((down, 16), (right, 24)))
    sources = (slice(max(-by, 0), size - max(by, 0)) for by, size in ((down, 16), (right, 24)))
    expected[:, :, rows, columns] = x[:, :, *sources].numpy()
    torch.testing.assert_close(translation(x, _u(*u)), torch.from_numpy(expected), rtol=0, atol=0)


def test_cutout_is_half_as_high_and_wide() -> None:
    x = torch.ones(1, 2, 16, 24, dtype=torch.float64)
    middle = cutout(x, _u(0.5, 0.5))
    assert (middle == 0).sum() == 2 * 8 * 12
    assert not middle[:, :, 4:12, 6:18].any()
    corner = cutout(x, _u(0.0, 0.0))
    assert (corner == 0).sum() == 2 * 4 * 6, "it hangs over the edge"
    assert not corner[:, :, :4, :6].any()


def test_every_move_and_place_is_as_likely() -> None:
    u = torch.cat([_u(value, value) for value in ((torch.arange(1700) + 0.5) / 1700).tolist()])
    x = torch.zeros(1700, 1, 64, 1, dtype=torch.float64)
    x[:, :, 32] = 1
    moved = translation(x, u).sum(0).flatten()
    assert torch.equal(moved[24:41], torch.full((17,), 100.0, dtype=torch.float64))
    assert moved.sum() == 1700


@pytest.mark.parametrize("apply", [color, translation, cutout])
def test_derivatives(apply) -> None:  # type: ignore[no-untyped-def]
    u = torch.cat([_u(*values) for values in ((0.2, 0.7, 0.9), (0.6, 0.1, 0.4))])[:, : 3 if apply is color else 2]
    x = _images(2, 2, 4, 8).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: apply(x, u), x)
    assert torch.autograd.gradgradcheck(lambda x: apply(x, u).square(), x)


def test_draws_follow_the_image() -> None:
    state = make_state(load_config(None), DataInfo((1, 8, 8), 10, 100), Distributed("fp64", cpu=True))

    def draws(*names: str) -> Draws:
        numbers = Scalars(torch.device("cpu"), {"row": torch.int64})
        return Draws(state, 3, None, points_to_float, False, make_augmentations(names, {}), numbers)

    def looks(names: tuple[str, ...], x: Tensor, first: int) -> Tensor:
        """What D sees of real images x whose first has this number: x itself here, as they are floats already."""
        of_images = draws(*names)
        of_images.scalars.write({"row": of_images.begin(first, len(x))})
        return of_images.real_images(x)

    x, names = _images(6, 1, 8, 8), ("cutout", "color", "translation")
    whole = looks(names, x, 100)
    assert torch.equal(looks(names, x[2:5], 102), whole[2:5])
    assert not torch.equal(looks(names, x, 106), whole)
    assert torch.equal(looks((), x, 100), x)


def test_d_sees_nothing_else_and_g_learns_through_it(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """With everything cut out, translated away or gray, D's two sides differ in nothing but what is left."""
    dist = Distributed("fp64", cpu=True)
    quiet = [f"{section}.every_kimg=0" for section in ("log", "sample", "metrics", "checkpoint")]
    config = load_recipe("digits_augment", *quiet, "tracking.wandb=disabled", "train.batch_size=8", "loss.r1_gamma=0")
    step = build(config, describe(source_of(config.data)), tmp_path, None, dist).trainer.step
    seen: list[Tensor] = []
    step.state.D.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    images = torch.full((8, 1, 16, 16), 255, dtype=torch.uint8)
    labels = torch.arange(8)
    _, x_real, _ = step.d_step(images, labels)
    step.g_step(x_real, labels)
    assert [len(x) for x in seen] == [16, 8], "real and generated images in one pass, and G's"
    bits = rng.words(0, Purpose.AUGMENT_REAL, 0, 8, NUMBERS)
    real = step.draws.augmented(torch.ones(8, 1, 16, 16, dtype=torch.float64), bits)
    assert torch.equal(seen[0][:8], real)
    assert torch.equal(x_real, real)
    assert all((x == 0).flatten(1).sum(1).min() >= 16 for x in seen), "a corner is missing from every image"
    step.draws.augmentations = []
    without = [p.grad.clone() for p in step.state.G.parameters()]
    step.g_step(x_real, labels)
    assert any(not torch.allclose(a, p.grad) for a, p in zip(without, step.state.G.parameters()))
