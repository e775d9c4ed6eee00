"""Commands that look at a run directory while the run writes and deletes checkpoints in it."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from program import Program

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(shared_program: Program) -> Path:
    """A run on two pictures of modes, with nine checkpoints: evaluating points takes no time."""
    points = ["data.name=ring", "model.g_args={tanh: false}", "model.conditional=false"]
    kept = ["train.kimg=2.88", "checkpoint.every_kimg=0.32", "checkpoint.keep=0", "sample.every_kimg=0"]
    result = shared_program.train("run.dir=run", *points, *kept, "metrics.num_images=100")
    assert result.returncode == 0, result.stderr
    return shared_program.cwd / "run"


@pytest.fixture
def run(program: Program, trained: Path) -> Path:
    return Path(shutil.copytree(trained, program.cwd / "run"))


def _checkpoints(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("0*"))


def _results(run: Path) -> list[str]:
    file = run / "evaluations.jsonl"
    return [json.loads(line)["checkpoint"] for line in file.read_text().splitlines()] if file.exists() else []


def _delete_as_a_run_does(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint.rename(checkpoint.with_name(f".tmp-{checkpoint.name}")))


@pytest.mark.clause("1.10", "evaluate RUN resolves `latest` in each process for itself while training writes")
def test_two_processes_measure_the_same_checkpoint(run: Path, program: Program) -> None:
    """Rank 1 comes to the directory when the newest checkpoint is gone, and must measure it nevertheless."""
    first, second = program.ranks(["evaluate", "run", "--n", "101"], ["evaluate", "away", "--n", "101"])
    outputs = [process.communicate(timeout=100) for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], outputs
    assert _results(run) == [_checkpoints(run)[-1].name]


@pytest.mark.clause("1.10", "`--checkpoint all` beside a run that prunes ends with an error")
def test_checkpoints_that_the_run_deletes_meanwhile_are_left_out(run: Path, program: Program) -> None:
    """While the first result is written, a thread in the place of the run deletes later checkpoints."""
    names = [path.name for path in _checkpoints(run)]
    process = program.start("evaluate", "run", "--checkpoint", "all", "--n", "200000")

    def prune() -> None:
        while not _results(run) and process.poll() is None:
            process_is_busy.wait(0.01)
        for name in names[5:8]:
            _delete_as_a_run_does(run / "checkpoints" / name)

    process_is_busy = threading.Event()
    thread = threading.Thread(target=prune, daemon=True)
    thread.start()
    out, error = process.communicate(timeout=100)
    thread.join()
    assert process.returncode == 0, error
    assert _results(run) == [*names[:5], *names[8:]]
    said = [line for line in out.splitlines() if "deleted by the run before they were measured" in line]
    assert len(said) == 1, out + error
    assert all(name in said[0] for name in names[5:8])


@pytest.mark.clause("1.10", "a pruned checkpoint is called damaged")
def test_checkpoint_that_is_pruned_while_it_is_read_is_not_damaged(run: Path, program: Program) -> None:
    """The run keeps one checkpoint. While the moments in it are read, the run puts the next one in its place."""
    older, *others, newest = _checkpoints(run)
    for path in others:
        shutil.rmtree(path)
    following = older.rename(older.with_name(f".tmp-{int(newest.name) + 32:012d}"))
    moments, manifest = newest / "opt_D.safetensors", newest / "manifest.json"
    with moments.open("ab") as file:
        file.truncate(2**29)  # it takes a moment to read
    with moments.open("rb") as file:
        noted = {"size": 2**29, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), moments.name: noted}))
    process = program.start("evaluate", "run", "--n", "100")
    while moments not in _open_files(process.pid):
        assert process.poll() is None, process.communicate()
    following.rename(following.with_name(following.name.removeprefix(".tmp-")))
    _delete_as_a_run_does(newest)
    out, error = process.communicate(timeout=100)
    assert process.returncode == 0, error
    assert "damaged" not in out + error
    assert _results(run) == [following.name.removeprefix(".tmp-")]


def _open_files(pid: int) -> list[Path]:
    with suppress(OSError):
        return [link.readlink() for link in Path(f"/proc/{pid}/fd").iterdir()]
    return []
