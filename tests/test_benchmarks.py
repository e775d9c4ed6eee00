"""The benchmarks work, on a tiny size; nothing is timed here."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Result, run_there
from forks import Forked

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
SMALL = ["model.g_widths=[16]", "model.d_widths=[16]", "train.batch_size=32"]
pytestmark = pytest.mark.slow


def _call(*arguments: str) -> Result:
    """`python -m benchmarks …` with torch imported before."""
    script = "import runpy; runpy.run_module('benchmarks', run_name='__main__', alter_sys=True)"
    process = Forked(["-c", script, *arguments], ROOT, {**os.environ})
    out, error = process.communicate(timeout=300)
    return subprocess.CompletedProcess(arguments, process.returncode, out, error)


def _run(*arguments: str) -> str:
    result = _call(*arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_list_has_a_line_on_each() -> None:
    listed = run_there(ROOT, "-m", "benchmarks")
    assert listed.returncode == 0
    lines = listed.stdout.splitlines()
    names = {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - {
        "__init__",
        "__main__",
        "arena",
        "contestants",
        "gpu_bits",
        "gpu_kernels",
        "gpu_measure",
        "gpu_parts",
        "gpu_runs",
    }
    assert {line.split()[0] for line in lines if line.startswith("  ")} == names


@pytest.mark.skipif(not FASHION_MNIST.is_dir(), reason="needs Fashion-MNIST: apt install dataset-fashion-mnist")
def test_contestants_compute_the_same_and_are_timed_in_turn(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    table = _run(
        "speed", f"data.root={FASHION_MNIST}", *SMALL, "--images", "64", "--rounds", "2", "--json", str(report)
    )
    found = json.loads(report.read_text())
    assert list(found["speeds"]) == ["textbook", "accelerate", "package", "bound"]
    assert all(len(values) == 2 for values in found["speeds"].values())
    assert {"date", "machine", "python", "torch"} <= found.keys()
    assert "over bound" in table


def test_table_of_targets_takes_up_what_a_report_has(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"rows": {"start": {"values": [4.0, 2.0, 2.5]}}}))
    table = _run("targets", "--rows", "start", "--json", str(report))
    assert "| start of `python train.py` | seconds beyond the imports | ≤ 3.0 | 2.50 (2.00–4.00) | ✓ |" in table


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_row_that_this_machine_cannot_measure_says_what_it_needs(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    table = _run("targets", "--rows", "gpu_mlp", "--json", str(report))
    measured_as = "images/s over textbook in its default precision"
    assert f"| GPU: MLP, batch 64, tf32 | {measured_as} | ≥ 20 | needs a GPU |  |" in table
    assert not report.exists()


@pytest.mark.skipif(not FASHION_MNIST.is_dir(), reason="needs Fashion-MNIST: apt install dataset-fashion-mnist")
def test_profile_has_operations_of_both() -> None:
    table = _run("profile", f"data.root={FASHION_MNIST}", *SMALL, "--iterations", "2")
    assert "| operation | package | bound |" in table
    assert "| whole iteration, without the profiler |" in table


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU, where targets measure nothing")
def test_gpu_command_runs_all_parts_at_a_tiny_size(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    shown = _run("gpu", f"data.root={FASHION_MNIST}", "--tiny", "--json", str(report))
    found = json.loads(report.read_text())["parts"]
    assert [*found] == ["bits", "tests", "r3gan", "targets", "recipes", "penalties", "means", "plan"]
    assert {part["status"] for part in found.values()} == {"complete"}
    assert all(part["rows"] for part in found.values())
    profiled = found["recipes"]["rows"]
    assert len(profiled) == 6
    assert all(row["figures"]["kernels"] > 0 and row["figures"]["busy"] > 0 for row in profiled)
    assert "  digits, fp32: repeated equal, resumed equal, logged figures equal" in shown.splitlines()
    assert "| recipes | share whose repeated and resumed runs are equal | ≥ 1 | 1.00 | ✓ |  |  |" in shown.splitlines()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_gpu_command_says_what_it_needs() -> None:
    result = _call("gpu")
    assert result.returncode == 1
    assert result.stdout.startswith("GPU: none")
    assert result.stderr.splitlines()[-1] == "needs a GPU"


def test_part_whose_time_is_over_keeps_its_rows_and_ends_its_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.gpu import Part, run_part
    from benchmarks.gpu_measure import Row

    processes = []

    def slow(_: Namespace) -> Iterator[Row]:
        yield Row("first", {"figure": 1.0})
        processes.append(multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,)))
        processes[0].start()
        time.sleep(60)

    rows, status, failed = run_part(Part(slow, 0.5), Namespace(), 0.5)
    assert [row["name"] for row in rows] == ["first"]
    assert (status, failed) == ("cut off after 0 s", False)
    processes[0].join(10)
    assert processes[0].exitcode is not None


def test_contestant_that_dies_costs_one_line(tmp_path: Path) -> None:
    result = _call("speed", f"data.root={tmp_path}", "--contestants", "package,bound")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("package: RuntimeError")


def test_two_copies_of_the_repository_train_in_turns(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    table = _run("trees", ".", ".", "--recipes", "grid_rpgan", "--turns", "2", "--json", str(report))
    assert "old/new" in table
    assert len(json.loads(report.read_text())["seconds"]["grid_rpgan"]) == 2
