"""Tests of two processes that share one GPU with gloo against one process. Only NCCL is not tested so."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import resume_worker
import torch
from conftest import RECIPES, ROOT, distance, make_images, mixes_samples, start_ranks
from distributed_worker import CPU, Jobs
from safetensors.torch import load_file
from shared_gpu_worker import config_to_stop
from torch import Tensor

from gan_dist.checkpoint.find import FILES
from gan_dist.parallel.distributed import Distributed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU and a CUDA build of torch"),
]

ROUNDING = {"smallest": 1e-6}  # a gradient that cancels out is the rounding of its summands, 1e-16
SPLITTABLE = [recipe for recipe in RECIPES if not mixes_samples(recipe)]
ENVIRONMENT = {
    "GAN_DIST_TEST_SHARED_GPU": "1",
    "NVIDIA_TF32_OVERRIDE": "0",  # fp32 is to be IEEE's, whatever torch's switches say
    "TORCH_CPP_LOG_LEVEL": "ERROR",  # as the command line sets it before it imports torch
    "PYTHONWARNINGS": "ignore",  # what rank 0 says of the killed one is then its only line
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With `1` and `2`, the results of one process and of two, and `lost`, the survivor's words on a killed one.

    All three processes run at the same time, as most of what they take is the start of Python.
    """
    folder = tmp_path_factory.mktemp("shared")
    make_images(folder / "images")
    # This leaves the classifier for metrics in the cache: one that each world trained on a GPU would not be the same.
    Jobs(folder).metrics(Distributed("fp32", cpu=CPU))
    worlds = {}
    for world_size in (1, 2):
        (folder / str(world_size)).mkdir()
        command = [str(ROOT / "tests/shared_gpu_worker.py"), str(folder / str(world_size)), str(folder / "images")]
        worlds[world_size] = start_ranks(world_size, command, folder, **ENVIRONMENT)
    (alone,), (survivor, killed) = worlds.values()
    try:
        assert survivor.stdout
        trained = any("/100000 kimg" in line for line in survivor.stdout)
        killed.kill()
        _, error = survivor.communicate(timeout=30)
        assert trained, error + killed.communicate()[1]
        (folder / "lost").write_text(json.dumps([survivor.returncode, killed.pid, error]))
        _, error = alone.communicate(timeout=300)
        assert alone.returncode == 0, error
    finally:
        for process in (alone, survivor, killed):
            process.kill()
            process.communicate()
    return folder


def _results(folder: Path, world_size: int) -> dict[str, Any]:
    return json.loads((folder / f"{world_size}/results.json").read_text())


def _tensors(folder: Path, world_size: int, name: str) -> dict[str, Tensor]:
    return load_file(folder / f"{world_size}/{name}.safetensors")


def test_both_processes_use_the_one_gpu(folder: Path) -> None:
    alone, two = _results(folder, 1), _results(folder, 2)
    assert (alone["backend"], two["backend"]) == ("none", "gloo")
    assert two["device"] == "cuda:0"
    assert two["of each rank"] == [[0, 1], [1 % torch.cuda.device_count(), 0]], (
        "its GPU, and if it is first on its node"
    )


@pytest.mark.parametrize("recipe", RECIPES)
def test_weights_averages_and_moments(recipe: str, folder: Path) -> None:
    """In fp64, with D's penalties in every other step."""
    name = f"fp64-{recipe}"
    assert distance(_tensors(folder, 2, name), _tensors(folder, 1, name), **ROUNDING) < 1e-9
    assert _results(folder, 2)[f"{name}: ranks agree"]


@pytest.mark.parametrize("recipe", SPLITTABLE)
def test_micro_batches(recipe: str, folder: Path) -> None:
    whole = _tensors(folder, 1, f"fp64-{recipe}")
    for world_size in (1, 2):
        assert distance(_tensors(folder, world_size, f"split-{recipe}"), whole, **ROUNDING) < 1e-9


@pytest.mark.parametrize("recipe", RECIPES)
def test_weights_in_single_precision(recipe: str, folder: Path) -> None:
    """Sums over a batch are made in another order, and each rounds: by 6e-8 of its largest summand.

    The bounds are 160 such roundings for weights and ten times as many for moments. On CPUs the differences are at most
    1.1e-7 and 2.1e-6.
    """
    one, two = (_tensors(folder, n, f"fp32-{recipe}") for n in (1, 2))
    for part, bound in (("G", 1e-5), ("D", 1e-5), ("G_ema", 1e-5), ("opt_G", 1e-4), ("opt_D", 1e-4)):
        expected = _joined(one, part)
        assert (_joined(two, part) - expected).norm() < bound * expected.norm(), part
    assert _results(folder, 2)[f"fp32-{recipe}: ranks agree"]


def _joined(tensors: dict[str, Tensor], part: str) -> Tensor:
    return torch.cat([tensor.double().flatten() for key, tensor in tensors.items() if key.split(".")[0] == part])


@pytest.mark.parametrize("recipe", RECIPES)
def test_logged_figures(recipe: str, folder: Path) -> None:
    """They are summed in fp32."""
    alone, two = (_results(folder, n)[f"fp64-{recipe}: figures"] for n in (1, 2))
    assert two == pytest.approx(alone, rel=1e-5, abs=1e-6)


def test_metrics(folder: Path) -> None:
    alone, two = _results(folder, 1), _results(folder, 2)
    assert two["metrics"] == pytest.approx(alone["metrics"], rel=1e-6)
    assert two["metrics of points"] == pytest.approx(alone["metrics of points"], rel=1e-6)


def test_compressed_gradients_are_bf16(folder: Path) -> None:
    sent, exact = _tensors(folder, 2, "compressed"), _tensors(folder, 2, "gradients")
    assert all(torch.equal(tensor, tensor.bfloat16().float()) for tensor in sent.values())
    assert 0 < distance(sent, exact) < 2e-2
    assert _results(folder, 2)["compressed: ranks agree"]


def test_bf16_with_a_penalty(folder: Path) -> None:
    one, two = (torch.cat([t.flatten() for t in _tensors(folder, n, "mixed").values()]) for n in (1, 2))
    assert (two - one).norm() / one.norm() < 4 * 2**-8, "a few roundings of bf16"
    assert _results(folder, 2)["mixed: ranks agree"]


def test_two_stop_and_one_goes_on(folder: Path) -> None:
    """SIGTERM to one of them; the run ends as one that never stopped, on one process."""
    stopped, whole = (max((folder / f"{n}/run/checkpoints").iterdir()) for n in (2, 1))
    assert int(stopped.name) < int(whole.name)
    dist = Distributed("fp64", cpu=CPU)
    resume_worker.train(folder / "2/run", config_to_stop(folder / "images"), dist, stop=False)
    for name in (name for name in FILES if name.endswith(".safetensors")):
        resumed = load_file(folder / "2/run/checkpoints" / whole.name / name)
        assert distance(resumed, load_file(whole / name), **ROUNDING) < 1e-9


def test_peer_of_a_killed_process_ends_and_names_it(folder: Path) -> None:
    status, pid, error = json.loads((folder / "lost").read_text())
    assert status == 1
    assert error.count("\n") == 1, error
    assert error.startswith(f"gan-dist: rank 0: error: lost rank 1 ({socket.gethostname()}, pid {pid})")
