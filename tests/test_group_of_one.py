"""Tests with a process group of one process, which runs the code of several processes, with NCCL too on one GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import OF_EACH_ARCHITECTURE, ROOT, TINY, distance, run_here
from safetensors.torch import load_file

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"]
GPU = torch.cuda.is_available()
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("group")
    command = [*TORCHRUN, str(ROOT / "tests/group_of_one_worker.py"), str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GAN_DIST_TEST_GROUP_OF_ONE", "1")
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def calls(ran: Path) -> dict[str, Any]:
    return json.loads((ran / "results.json").read_text())


@pytest.mark.parametrize("recipe", [*OF_EACH_ARCHITECTURE.values(), "wgan_gp_fashion_mnist"])
def test_run_is_that_of_a_plain_process(recipe: str, ran: Path) -> None:
    """In fp64, with a penalty in every other step of D, and micro-batches where they change nothing."""
    plain, group = (load_file(ran / f"{name}-{recipe}.safetensors") for name in ("plain", "group"))
    assert distance(group, plain, smallest=1e-6) < 1e-9


def test_plain_process_calls_no_other(calls: dict[str, Any]) -> None:
    plain = calls["plain"]
    assert plain["world"] == [False, 1, "none"]
    assert [plain[part] for part in ("step", "figures", "gather", "from main", "stop")] == [{}] * 5
    assert plain["answers after a signal"] == [True] * 5
    assert "DistributedDataParallel" not in plain["wrapped"]
    assert plain["batch norm"] == "BatchNorm2d"


def test_group_of_one_calls_all_that_several_processes_call(calls: dict[str, Any]) -> None:
    group = calls["group"]
    assert group["world"] == [True, 1, "nccl" if GPU else "gloo"]
    assert group["wrapped"] == ["DistributedDataParallel"] * 2
    assert group["batch norm"] == "SyncBatchNorm"
    assert group["step"] == {"c10d::allreduce_": 2}, "D's gradient and G's, with the last micro-batch of each"
    assert group["figures"] == {"c10d::allreduce_": 1}
    assert group["gather"] == {"c10d::_allgather_base_" if GPU else "c10d::allgather_": 2}, (
        "lengths, and what is joined"
    )
    assert group["from main"] == {"c10d::broadcast_": 2}, "length and content"
    assert group["stop"] == {"c10d::allreduce_": 1}
    assert group["answers after a signal"] == [False] * 4 + [True], "when the answer has arrived"


def test_setting_without_a_launcher_gets_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAN_DIST_TEST_GROUP_OF_ONE", "1")
    result = run_here(tmp_path, "train", *TINY, "run.dir=run")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "GAN_DIST_TEST_GROUP_OF_ONE=1 needs a process group: start with torchrun, or unset it" in result.stderr
