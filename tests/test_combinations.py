"""Tests of all combinations of loss, architecture and regularizer: each trains, or is refused with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import OF_EACH_ARCHITECTURE, load_recipe, make_images

from gan_dist.data.datasets import describe
from gan_dist.errors import ConfigError
from gan_dist.game.losses import LOSSES
from gan_dist.parallel.distributed import Distributed
from gan_dist.wiring.build import build
from gan_dist.wiring.checks import check_parts
from gan_dist.wiring.data import source_of

NONE = {"r1_gamma": 0, "r2_gamma": 0, "gradient_penalty": 0, "clip_weights": 0, "drift": 0, "label_smoothing": 0}
REGULARIZERS = {
    "none": {},
    "R1 and R2": {"r1_gamma": 1, "r2_gamma": 1},
    "WGAN-GP": {"gradient_penalty": 10, "drift": 0.001},
    "clipping": {"clip_weights": 0.1},
    "everything": {"r1_gamma": 1, "r2_gamma": 1, "gradient_penalty": 1, "clip_weights": 1, "drift": 0.1},
}
QUIET = [f"{section}.every_kimg=0" for section in ("log", "sample", "metrics", "checkpoint")]


def _refusal(architecture: str, loss: str, regularizer: str) -> str | None:
    """A part of the error message for a combination that is refused; None for one that trains."""
    settings = REGULARIZERS[regularizer]
    if architecture == "dcgan" and "gradient_penalty" in settings:
        return "batch normalization in D"
    if loss == "wasserstein" and regularizer == "none" and architecture != "sngan":
        return "grows without bound"
    return None


# Every loss with every regularizer; with the larger networks, a loss of each kind.
KINDS = ("non_saturating", "wasserstein", "relativistic")
COMBINATIONS = [
    (architecture, loss, regularizer)
    for architecture in OF_EACH_ARCHITECTURE
    for loss in (LOSSES if architecture == "mlp" else KINDS)
    for regularizer in REGULARIZERS
]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings for a few noisy ones."""
    folder = tmp_path_factory.mktemp("combinations") / "images"
    make_images(folder)
    return ["data.name=folder", f"data.root={folder}", "data.class_folders=true"]


@pytest.mark.parametrize(("architecture", "loss", "regularizer"), COMBINATIONS)
def test_combination_trains_or_is_refused(
    architecture: str, loss: str, regularizer: str, images: list[str], tmp_path: Path
) -> None:
    settings = [f"loss.{key}={value}" for key, value in {**NONE, **REGULARIZERS[regularizer]}.items()]
    arguments = ["model.d_args={batch_norm: true}"] if architecture == "dcgan" else []
    config = load_recipe(
        OF_EACH_ARCHITECTURE[architecture], *images, *settings, *arguments, *QUIET,
        f"loss.name={loss}", "train.batch_size=8", "train.n_critic=1", "tracking.wandb=disabled",
    )  # fmt: skip
    config.growth.batch_sizes = []
    dist, info = Distributed(cpu=True), describe(source_of(config.data))
    if refusal := _refusal(architecture, loss, regularizer):
        with pytest.raises(ConfigError, match=refusal):
            check_parts(config, info, dist)
        return
    check_parts(config, info, dist)
    trainer = build(config, info, tmp_path, None, dist).trainer
    before = [p.clone() for p in trainer.state.G.parameters()]
    norms = [norm for _ in range(2) for norm in trainer.step(trainer.batches)]
    assert all(torch.isfinite(norm) for norm in norms)
    assert any(not torch.equal(a, p) for a, p in zip(before, trainer.state.G.parameters())), "G has moved"
