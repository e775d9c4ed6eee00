"""Tests that a run gives the same result for any number of processes. They use real processes with gloo.

Of recipes that differ in data, sizes and rates alone, one is trained: processes share its batches in the same way.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import DISTINCT, OF_EACH_ARCHITECTURE, ROOT, SMALL, distance, mixes_samples, start_ranks
from distributed_worker import COMPILED, IN_FOUR, PENALTIES, SEEDS, WIRE
from safetensors.torch import load_file

from gan_dist import models
from gan_dist.parallel.distributed import Distributed

WORLDS = (1, 2, 4)
TRAINED = [(recipe, 2) for recipe in DISTINCT] + [(recipe, 4) for recipe in IN_FOUR]
SPLIT = [(recipe, n) for recipe, n in [(recipe, 1) for recipe in DISTINCT] + TRAINED if not mixes_samples(recipe)]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """A folder of results for each number of processes."""
    folders = {}
    for world_size in WORLDS:
        folders[world_size] = tmp_path_factory.mktemp(f"world{world_size}")
        command = [str(ROOT / "tests/distributed_worker.py"), str(folders[world_size])]
        processes = start_ranks(world_size, command, folders[world_size])
        for process in processes:
            _, error = process.communicate(timeout=300)
            assert process.returncode == 0, error
    return folders


def _results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def test_every_architecture_is_here() -> None:
    assert sorted(SMALL) == sorted(OF_EACH_ARCHITECTURE) == models.names()


@pytest.mark.parametrize(("recipe", "world_size"), TRAINED)
def test_weights_averages_and_moments_do_not_depend_on_the_processes(
    recipe: str, world_size: int, ran: dict[int, Path]
) -> None:
    alone, many = (load_file(ran[n] / f"train-{recipe}.safetensors") for n in (1, world_size))
    assert {key.split(".")[0] for key in alone} == {"G", "D", "G_ema", "opt_G", "opt_D"}
    assert distance(many, alone) < 1e-9
    assert _results(ran[world_size])[f"train-{recipe}: ranks agree"]


@pytest.mark.parametrize(("recipe", "world_size"), TRAINED)
def test_logged_figures_do_not_depend_on_the_processes(recipe: str, world_size: int, ran: dict[int, Path]) -> None:
    """They are summed in fp32."""
    alone, many = (_results(ran[n])[f"train-{recipe}: figures"] for n in (1, world_size))
    assert many == pytest.approx(alone, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(("recipe", "world_size"), SPLIT)
def test_micro_batches_change_nothing(recipe: str, world_size: int, ran: dict[int, Path]) -> None:
    whole = load_file(ran[1] / f"train-{recipe}.safetensors")
    assert distance(load_file(ran[world_size] / f"split-{recipe}.safetensors"), whole) < 1e-9


@pytest.mark.parametrize("recipe", COMPILED)
def test_compiled_steps_do_not_depend_on_the_processes(recipe: str, ran: dict[int, Path]) -> None:
    """One process without compiled steps, and two with them, in micro-batches; `test_compile.py` has one with them."""
    plain = load_file(ran[1] / f"train-{recipe}.safetensors")
    assert distance(load_file(ran[2] / f"compiled-{recipe}.safetensors"), plain) < 1e-9
    assert _results(ran[2])[f"compiled-{recipe}: ranks agree"]
    figures = (_results(ran[n])[f"{kind}-{recipe}: figures"] for n, kind in ((1, "train"), (2, "compiled")))
    assert next(figures) == pytest.approx(next(figures), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("world_size", WORLDS[1:])
@pytest.mark.parametrize("recipe", OF_EACH_ARCHITECTURE.values())
def test_first_gradients_in_single_precision(recipe: str, world_size: int, ran: dict[int, Path]) -> None:
    """Of one of two seeds: an activation that rounding moves across a ReLU's kink changes gradients by 1e-3."""
    distances = []
    for seed in SEEDS:
        alone, many = (load_file(ran[n] / f"gradients-{recipe}-{seed}.safetensors") for n in (1, world_size))
        largest = max(tensor.abs().max().item() for tensor in alone.values())  # some gradients are all cancellation
        distances.append(distance(many, alone, smallest=1e-2 * largest))
        assert _results(ran[world_size])[f"gradients-{recipe}-{seed}: ranks agree"]
    assert min(distances) < 1e-5


def test_each_gradient_crosses_once(ran: dict[int, Path]) -> None:
    """For every loss and penalty, with and without micro-batches and n_critic; and nothing else does."""
    measured = _results(ran[2])["wire"]
    assert len(measured) == len(WIRE) == 6 + 5 - 1
    for row in measured:
        assert row["sent"] == {"G": 2 * row["sizes"]["G"], "D": 2 * row["n_critic"] * row["sizes"]["D"]}, row
        assert row["total"] == sum(row["sent"].values()), row


def test_run_that_starts_from_another_does_not_depend_on_the_processes(ran: dict[int, Path]) -> None:
    alone, many = (load_file(ran[n] / "started-digits.safetensors") for n in (1, 2))
    assert distance(many, alone) < 1e-9
    assert _results(ran[2])["started-digits: ranks agree"]


def test_frozen_blocks_are_not_sent(ran: dict[int, Path]) -> None:
    row = _results(ran[2])["wire of a frozen D"]
    assert row["sizes"]["D"] < row["all of D"] / 10, "the first layer of this D has nearly all of its weights"
    assert row["sent"] == {"G": 2 * row["sizes"]["G"], "D": 2 * row["n_critic"] * row["sizes"]["D"]}
    assert row["total"] == sum(row["sent"].values())


def test_batch_normalization_of_several_processes_is_not_compiled(ran: dict[int, Path]) -> None:
    """Its statistics are exchanged in the middle of the networks."""
    assert [_results(ran[n])["batch normalization is compiled"] for n in (1, 2)] == [True, False]


def test_each_gradient_of_a_compiled_step_crosses_once(ran: dict[int, Path]) -> None:
    rows = _results(ran[2])["wire of compiled steps"]
    assert len(rows) == len(PENALTIES)
    for row in rows:
        assert row["sent"] == {"G": 2 * row["sizes"]["G"], "D": 2 * row["n_critic"] * row["sizes"]["D"]}, row
        # Beside gradients only the processes' word that they have compiled each loss, a number of 4 bytes.
        assert row["total"] - sum(row["sent"].values()) <= 4 * 4 + 4 * 4, row


@pytest.mark.parametrize("recipe", [*DISTINCT, "pggan_celeba while a stage fades in"])
def test_each_gradient_of_a_recipe_crosses_once(recipe: str, ran: dict[int, Path]) -> None:
    """Growing networks send what their stage has. Beside gradients only statistics of batch normalization go along."""
    row = _results(ran[2])["wire of recipes"][recipe]
    assert row["sent"] == {"G": 2 * row["sizes"]["G"], "D": 2 * row["n_critic"] * row["sizes"]["D"]}
    if recipe in DISTINCT:  # at the start, that is
        assert f"all-reduces {sum(row['sent'].values()) // 2:,} bytes" in row["said"]
    if not mixes_samples(recipe.split()[0]):
        assert row["total"] == sum(row["sent"].values())


@pytest.mark.parametrize("world_size", WORLDS[1:])
def test_metrics_do_not_depend_on_the_processes(world_size: int, ran: dict[int, Path]) -> None:
    alone, many = _results(ran[1]), _results(ran[world_size])
    assert many["metrics"].keys() == {f"{name}_classifier" for name in ("fid", "kid", "is", "precision", "recall")}
    assert many["metrics"] == pytest.approx(alone["metrics"], rel=1e-6)
    assert many["metrics of points"] == pytest.approx(alone["metrics of points"], rel=1e-6)
    assert many["evaluated"] == {"fake": 1003, "real": 1797}, "nothing is padded or counted twice"


@pytest.mark.parametrize("world_size", WORLDS[1:])
def test_compressed_gradients_are_bf16(world_size: int, ran: dict[int, Path]) -> None:
    sent, exact = (load_file(ran[world_size] / f"{name}.safetensors") for name in ("compressed", "gradients-default"))
    assert all(torch.equal(tensor, tensor.bfloat16().float()) for tensor in sent.values())
    assert 0 < distance(sent, exact) < 2e-2
    assert _results(ran[world_size])["compressed: ranks agree"]


@pytest.mark.parametrize("world_size", WORLDS[1:])
def test_bf16_with_a_penalty(world_size: int, ran: dict[int, Path]) -> None:
    """The penalty's second forward pass, in fp32, goes through the wrapper too and is averaged."""
    alone, many = (load_file(ran[n] / "mixed.safetensors") for n in (1, world_size))
    a, b = (torch.cat([tensor.flatten() for tensor in tensors.values()]) for tensors in (many, alone))
    assert (a - b).norm() / b.norm() < 4 * 2**-8, "a few roundings of bf16"
    results = _results(ran[world_size])
    assert results["mixed: ranks agree"]
    assert results["mixed: weights"] == "torch.float32"


def test_shares_are_disjoint_complete_and_even() -> None:
    for count, world_size in ((12, 4), (10, 4), (3, 4), (0, 2)):
        shares = []
        for rank in range(world_size):
            process = Distributed.__new__(Distributed)  # no other process need be there
            process.rank, process.world_size = rank, world_size
            shares.append(process.share(count))
        assert [i for share in shares for i in share] == list(range(count))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
