"""Tests of faults: none loses more than the work since the last checkpoint, and each is reported in one line."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, Train, read_until
from forks import Forked
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import gan_dist
from gan_dist.checkpoint.find import find_checkpoint, list_checkpoints, verify
from gan_dist.checkpoint.lock import lock_run
from gan_dist.checkpoint.manifest import read_file
from gan_dist.checkpoint.restore import restore
from gan_dist.checkpoint.write import clean_up, prune, set_aside, take_snapshot, write_checkpoint
from gan_dist.cli import main
from gan_dist.data.datasets import describe
from gan_dist.engine.callbacks import save
from gan_dist.errors import ConfigError, UserError
from gan_dist.parallel.distributed import Distributed
from gan_dist.parallel.signals import StopSignals
from gan_dist.settings.config import load_config
from gan_dist.wiring.build import WiredRun, build
from gan_dist.wiring.data import source_of
from gan_dist.wiring.networks import optimizer_names

SMALL = [*TINY, "model.z_dim=8", "log.every_kimg=0", "sample.every_kimg=0"]


@pytest.fixture(scope="module")
def dist() -> Distributed:
    return Distributed("fp32", cpu=True)


def _build(
    folder: Path, dist: Distributed, *settings: str, checkpoint: Path | None = None, callbacks: Sequence[Any] = ()
) -> WiredRun:
    config = load_config(None, ["loss.r1_gamma=1", *SMALL, *settings])
    folder.mkdir(exist_ok=True)
    return build(config, describe(source_of(config.data)), folder, checkpoint, dist, callbacks=callbacks)


# --- the soak test in small -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_run_ends_like_one_that_never_was(
    processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("soak", ROOT / "benchmarks/soak.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def start(command: list[str], env: dict[str, str], stdout: Any, stderr: Any, start_new_session: bool) -> Forked:
        return Forked(command[1:], tmp_path, env, stdout, stderr)

    monkeypatch.setattr(module, "subprocess", SimpleNamespace(Popen=start))
    settings = [*SMALL, "train.kimg=16", "checkpoint.every_kimg=0.25", "train.batch_size=32"]
    result = module.soak(2, 32, processes, settings, tmp_path)  # after 0.6 s, and while a checkpoint is written
    assert result["enough kills"]
    assert result["tensors that differ"] == []
    assert result["images"] == 16_000


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_retention_keeps_the_newest_the_best_and_one_of_every_so_many(tmp_path: Path, dist: Distributed) -> None:
    state = _build(tmp_path, dist).state
    for nimg in range(1000, 11_000, 1000):
        state.nimg = state.metrics_nimg = nimg
        state.metrics = {"fid_classifier": 5.0 if nimg == 2000 else 10.0}
        write_checkpoint(tmp_path, take_snapshot(state, _facts()), "train: {}\n")
        prune(tmp_path, keep=2, every_nimg=4000, best=True)
    names = [path.name for path in sorted((tmp_path / "checkpoints").iterdir())]
    assert [int(name) for name in names] == [2000, 4000, 8000, 9000, 10_000]
    assert int(find_checkpoint(tmp_path, "best").name) == 2000


def test_due_checkpoint_is_there_before_an_evaluation_and_best_after_it(
    tmp_path: Path, dist: Distributed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An evaluation can be killed, so what was trained before it is on disk first."""
    there = []

    class Watching:
        protocol: dict[str, Any] = {}  # noqa: RUF012

        def __call__(self, G: nn.Module, check: Callable[[], None]) -> dict[str, float]:
            run.save.wait()
            there.append([int(path.name) for path in list_checkpoints(tmp_path)])
            return {"fid_classifier": float(len(there))}

    monkeypatch.setattr("gan_dist.wiring.kinds.images.ImagesKind.make_evaluator", lambda *_: Watching())
    run = _build(tmp_path, dist, "metrics.every_kimg=2")
    assert run.train(StopSignals())
    assert there == [[], [2016], [2016, 4000]]
    assert int(find_checkpoint(tmp_path, "best").name) == 2016


def test_failing_evaluation_costs_no_work(tmp_path: Path, dist: Distributed, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        protocol: dict[str, Any] = {}  # noqa: RUF012

        def __call__(self, G: nn.Module, check: Callable[[], None]) -> dict[str, float]:
            if run.state.nimg:
                raise RuntimeError("it fails")
            return {}

    monkeypatch.setattr("gan_dist.wiring.kinds.images.ImagesKind.make_evaluator", lambda *_: Failing())
    run = _build(tmp_path, dist, "metrics.every_kimg=1", "checkpoint.every_kimg=0")
    with pytest.raises(RuntimeError, match="it fails"):
        run.train(StopSignals())
    assert [int(path.name) for path in list_checkpoints(tmp_path)] == [run.state.nimg]


def test_newer_checkpoints_are_set_aside_when_a_run_goes_on(tmp_path: Path, dist: Distributed) -> None:
    """Damaged ones, and those of a course that the run has left, are not among the newest that are kept."""
    state = _build(tmp_path, dist).state

    def write(nimg: int) -> None:
        state.nimg = nimg
        write_checkpoint(tmp_path, take_snapshot(state, _facts()), "train: {}\n")

    for nimg in (1000, 2000, 3000, 4000):
        write(nimg)
    (tmp_path / "checkpoints/000000004000/G.safetensors").write_bytes(b"torn")
    set_aside(find_checkpoint(tmp_path, "000000002000"))
    for nimg in (2500, 3000):
        write(nimg)
        prune(tmp_path, keep=2, every_nimg=0, best=False)
    assert [int(path.name) for path in list_checkpoints(tmp_path)] == [2500, 3000]
    verify(tmp_path / "checkpoints/aside-000000003000")
    assert (tmp_path / "checkpoints/aside-000000004000").is_dir()


def test_checkpoint_that_replaces_another_never_costs_both(
    tmp_path: Path, dist: Distributed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed, or failing, after the old one was renamed and before the new one is."""
    state = _build(tmp_path, dist).state
    whole = write_checkpoint(tmp_path, take_snapshot(state, _facts()), "train: {}\n")
    whole.rename(whole.with_name(f".old-{whole.name}"))
    clean_up(tmp_path)
    verify(whole)
    rename = Path.rename
    monkeypatch.setattr(Path, "rename", lambda path, to: 1 / 0 if ".tmp" in path.name else rename(path, to))
    with pytest.raises(ZeroDivisionError):
        write_checkpoint(tmp_path, take_snapshot(state, _facts()), "train: {}\n")
    verify(whole)
    assert list((tmp_path / "checkpoints").iterdir()) == [whole]


def test_best_checkpoint_is_written_though_the_writer_is_busy_or_has_failed(tmp_path: Path, dist: Distributed) -> None:
    run = _build(tmp_path, dist, "checkpoint.every_kimg=1")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/.tmp-000000000300").touch()  # no directory can be made there

    def evaluated(nimg: int, fid: float) -> None:
        run.state.nimg = run.state.metrics_nimg = nimg
        run.state.metrics = {"fid_classifier": fid}
        run.save.if_best(run.state)

    for nimg, fid in ((100, 9.0), (200, 5.0), (300, 3.0), (400, 4.0), (500, 6.0)):
        evaluated(nimg, fid)
    run.save.wait()
    assert [int(path.name) for path in list_checkpoints(tmp_path)] == [100, 200, 400]


def _facts() -> dict[str, Any]:
    """What a checkpoint holds about its run."""
    known = {"image_shape": [1, 8, 8], "num_classes": 10, "num_images": 1797, "class_names": [], "unreadable": []}
    nothing: dict[str, Any] = {"environment": {}, "protocol": {}, "paths": {}, "started_from": {}, "callbacks": {}}
    return {**known, **nothing, "series": 1, "unmeasured": False}


def test_loss_scales_are_restored(tmp_path: Path) -> None:
    dist = Distributed("fp32", cpu=True)
    dist.precision = "fp16"  # the real scalers; only a GPU runs networks in fp16
    state = _build(tmp_path, dist).state
    for name, scale in (("D", 2.0**10), ("G", 2.0**3)):
        state.scalers[name].load_state_dict({**state.scalers[name].state_dict(), "scale": scale})
    write_checkpoint(tmp_path, take_snapshot(state, _facts()), "train: {}\n")
    fresh = _build(tmp_path / "fresh", dist).state
    restore(find_checkpoint(tmp_path), fresh)
    assert {name: scaler.get_scale() for name, scaler in fresh.scalers.items()} == {"D": 2.0**10, "G": 2.0**3}


@pytest.mark.parametrize("name", optimizer_names())
def test_moments_of_every_optimizer_are_restored(name: str, tmp_path: Path, dist: Distributed) -> None:
    run, fresh = (_build(tmp_path / part, dist, f"optim.G.name={name}") for part in ("run", "fresh"))
    for parameter in run.state.G.parameters():
        parameter.grad = torch.ones_like(parameter)
    run.state.opt_G.step()
    write_checkpoint(tmp_path, take_snapshot(run.state, _facts()), "train: {}\n")
    restore(find_checkpoint(tmp_path), fresh.state)
    torch.testing.assert_close(fresh.state.opt_G.state_dict(), run.state.opt_G.state_dict(), rtol=0, atol=0)


def test_snapshot_does_not_change_while_training_goes_on(tmp_path: Path, dist: Distributed) -> None:
    run = _build(tmp_path, dist)
    run.trainer.step(run.trainer.batches)
    snapshot = take_snapshot(run.state, _facts())
    before = {name: {key: t.clone() for key, t in tensors.items()} for name, tensors in snapshot.tensors.items()}
    run.trainer.step(run.trainer.batches)
    torch.testing.assert_close(snapshot.tensors, before, rtol=0, atol=0)
    assert snapshot.facts["nimg"] == 32


def test_run_that_goes_on_takes_the_next_images(tmp_path: Path, dist: Distributed) -> None:
    run = _build(tmp_path, dist)
    for _ in range(3):
        run.trainer.step(run.trainer.batches)
    assert run.save.now(run.state)
    again = _build(tmp_path, dist, checkpoint=find_checkpoint(tmp_path))
    assert again.state.nimg == 96
    for theirs, ours in zip(next(run.trainer.batches), next(again.trainer.batches)):
        assert torch.equal(theirs, ours)


def test_rollback_changes_the_order_of_the_images(tmp_path: Path, dist: Distributed) -> None:
    """Where one batch is the cause of a failure, it must not come again."""
    run = _build(tmp_path, dist)
    images, _ = next(run.trainer.batches)
    run.trainer.batches.rewind(0)
    assert torch.equal(next(run.trainer.batches)[0], images)
    run.state.retries = 1
    run.trainer.batches.rewind(0)
    assert not torch.equal(next(run.trainer.batches)[0], images)


def test_loaded_generator_is_the_average(tmp_path: Path, dist: Distributed) -> None:
    run = _build(tmp_path, dist, "ema.rampup=0")
    for _ in range(3):
        run.trainer.step(run.trainer.batches)
    assert run.save.now(run.state)
    loaded, average, last = gan_dist.load_generator(tmp_path), run.state.G_ema, run.state.G
    assert not loaded.training
    assert all(torch.equal(value, average.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert not any(torch.equal(value, last.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_changed_linked_and_larger_files_are_refused(tmp_path: Path, dist: Distributed) -> None:
    state = _build(tmp_path, dist).state
    checkpoint = write_checkpoint(tmp_path, take_snapshot(state, _facts()), "train: {}\n")
    path = checkpoint / "G.safetensors"
    content = path.read_bytes()
    with pytest.raises(UserError, match="bytes are more than 10"):
        read_file(checkpoint, path.name, most=10)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match="its SHA-256 is not that of"):
        verify(checkpoint)
    (tmp_path / "elsewhere").write_bytes(content)
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="a link"):
        verify(checkpoint)


def test_weights_that_are_not_finite_are_never_saved(
    tmp_path: Path, dist: Distributed, caplog: pytest.LogCaptureFixture
) -> None:
    """A checkpoint may be due before the gradients, which are read some iterations later, are found to be broken."""
    run = _build(tmp_path, dist)
    assert run.save.now(run.state)
    run.state.nimg = 100
    with torch.no_grad():
        next(run.state.D.parameters())[0] = torch.nan
    assert not run.save.now(run.state)
    assert "no checkpoint at 0.1 kimg: weights are not finite" in caplog.text
    assert [int(path.name) for path in list_checkpoints(tmp_path)] == [0]


def test_failed_write_leaves_no_trace(tmp_path: Path, dist: Distributed, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read back is not what was written, as on a disk that lies."""
    state = _build(tmp_path, dist).state
    monkeypatch.setattr(
        os, "fsync", lambda _: [path.write_bytes(b"") for path in tmp_path.glob("checkpoints/.tmp*/D.*")]
    )
    with pytest.raises(UserError, match="damaged"):
        write_checkpoint(tmp_path, take_snapshot(state, _facts()), "train: {}\n")
    assert list((tmp_path / "checkpoints").iterdir()) == []


@pytest.mark.slow
def test_auto_skips_broken_checkpoints_with_a_line_each(train: Train, tmp_path: Path) -> None:
    assert train("run.dir=run", "train.kimg=8", "checkpoint.every_kimg=1", "checkpoint.keep=0").returncode == 0
    folder = tmp_path / "run/checkpoints"
    # A busy machine leaves some out: one that is due while another is being written.
    *_, third, second, newest = sorted(path.name for path in folder.iterdir())
    (folder / newest / "G.safetensors").write_bytes(b"torn")
    (folder / second / "manifest.json").unlink()
    (folder / ".tmp-000000009000").mkdir()
    result = train("run.dir=run", "resume=auto", tiny=False)
    assert result.returncode == 0, result.stderr
    assert f"warning: run/checkpoints/{newest}/G.safetensors: damaged: 4 bytes, not" in result.stdout
    assert f"warning: run/checkpoints/{second}/manifest.json: damaged: no such file" in result.stdout
    assert f"going on from run/checkpoints/{third}" in result.stdout
    verify(folder / newest)
    assert not (folder / ".tmp-000000009000").exists()
    assert {path.name for path in folder.glob("aside-*")} == {f"aside-{second}", f"aside-{newest}"}


CHANGES = {
    "model.g_widths=[16]": "model.g_widths: [32] -> [16]",
    "train.seed=5": "train.seed: 0 -> 5",
    "train.batch_size=16": "train.batch_size: 32 -> 16",
    "optim.G.name=SGD": "optim.G.name: Adam -> SGD",
}


@pytest.mark.slow
def test_another_run_is_not_resumed_and_says_what_differs(train: Train) -> None:
    assert train("run.dir=run", "train.kimg=0.1").returncode == 0
    result = train("run.dir=run", "resume=auto", *CHANGES, tiny=False)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    for change in CHANGES.values():
        assert change in result.stderr
    allowed = ["train.kimg=0.2", "log.every_kimg=0.1", "checkpoint.keep=1", "optim.G.lr=1e-4"]
    assert train("run.dir=run", "resume=auto", *allowed, tiny=False).returncode == 0


@pytest.mark.slow
def test_full_disk_costs_a_checkpoint_and_no_more(tmp_path: Path, dist: Distributed) -> None:
    """A file system of 1 MB, which only root may mount: filled while training, then freed."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system is not permitted")
    try:
        script = [str(ROOT / "train.py"), *SMALL, "train.kimg=100000", "log.every_kimg=1",
                  "sample.every_kimg=1", "checkpoint.every_kimg=1", f"run.dir={disk}/run"]  # fmt: skip
        with Forked(script, tmp_path, {**os.environ}) as process:
            read_until(process, "3.0/100000 kimg")
            (disk / "ballast").write_bytes(b"")
            with (disk / "ballast").open("ab", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(4096))
                except OSError:
                    pass
            read_until(process, "no checkpoint at")
            before = find_checkpoint(disk / "run")
            verify(before)
            read_until(process, "kimg  D ")
            (disk / "ballast").unlink()
            deadline = time.monotonic() + 60
            while find_checkpoint(disk / "run").name <= before.name:
                assert time.monotonic() < deadline
                assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            _, error = process.communicate(timeout=60)
        assert process.returncode == 75, error
        assert "Traceback" not in error
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


# --- signals and locks ------------------------------------------------------------------------------------------------


def _started(folder: Path, *settings: str) -> subprocess.Popen[str]:
    command = [str(ROOT / "train.py"), *TINY, "train.kimg=100000", "run.dir=run", *settings]
    process = Forked(command, folder, {**os.environ})
    read_until(process, "2.0/100000 kimg")
    return process


def test_locked_directory_is_refused_until_the_lock_is_released(tmp_path: Path) -> None:
    lock = lock_run(tmp_path)
    with pytest.raises(UserError, match=f"is in use by process {os.getpid()} on {socket.gethostname()}"):
        lock_run(tmp_path)
    lock.release()
    lock_run(tmp_path).release()


@pytest.mark.slow
def test_usr1_stops_and_a_second_run_on_the_directory_is_refused(train: Train, tmp_path: Path) -> None:
    process = _started(tmp_path)
    for resume in ("auto", "latest"):
        second = train("run.dir=run", f"resume={resume}", tiny=False)
        assert second.returncode == 1
        assert f"run.dir=run is in use by process {process.pid} on {socket.gethostname()}" in second.stderr
        assert second.stderr.count("\n") == 1
    process.send_signal(signal.SIGUSR1)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 75, error
    assert "stopped at" in out


@pytest.mark.slow
def test_lock_of_a_killed_run_is_stale(train: Train, tmp_path: Path) -> None:
    process = _started(tmp_path)
    process.kill()
    process.communicate()
    result = train("run.dir=run", "resume=auto", "train.kimg=4", tiny=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_signal_before_the_first_iteration_is_heard(tmp_path: Path) -> None:
    """It comes while torch is still being imported."""
    command = [sys.executable, "-u", "-c", "import os, signal, sys\nfrom gan_dist.cli import main, train\n"
               "watch, enter = train.StopSignals, train.StopSignals.__enter__\n"
               "watch.__enter__ = lambda self: (enter(self), os.kill(os.getpid(), signal.SIGUSR1))[0]\n"
               "sys.exit(main(['train', *sys.argv[1:]]))", *TINY, "run.dir=run", "resume=auto"]  # fmt: skip
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.returncode == 75, result.stderr
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["000000000000"]


def test_repeated_signal_is_the_same_one() -> None:
    with StopSignals() as signals:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):  # the terminal's, the launcher's, and again
            os.kill(os.getpid(), number)
        assert signals.received == signal.SIGINT


@pytest.mark.slow
def test_second_interrupt_ends_at_once_inside_a_blocked_call() -> None:
    """The main thread is where no handler of Python's runs, as inside a collective: it locks a mutex twice."""
    script = """if True:
        import ctypes
        from gan_dist.parallel import signals
        signals.SAME = 0
        with signals.StopSignals():
            libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
            libc.pthread_mutex_lock(mutex)
            print("locked", flush=True)
            libc.pthread_mutex_lock(mutex)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "locked\n"
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
    assert process.returncode == 130
    assert process.communicate()[1] == "gan-dist: interrupted\n"


# --- sick training ----------------------------------------------------------------------------------------------------


def _train_with_nan(run: WiredRun, at: list[int]) -> bool:
    """Train; the gradient of D is not a number in the iterations that begin at these images seen, once each."""
    state, left = run.state, list(at)

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        if state.nimg in left:
            left.remove(state.nimg)
            return gradient * torch.nan
        return gradient

    next(state.D.parameters()).register_hook(spoil)
    return run.train(StopSignals())


class _Count:
    """A callback of a user, which counts its calls."""

    every_kimg = 0.05

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, context: Any) -> None:
        self.calls += 1

    def state_dict(self) -> int:
        return self.calls

    def load_state_dict(self, calls: int) -> None:
        self.calls = calls


@pytest.mark.slow
def test_rollback_goes_on_with_other_data(tmp_path: Path, dist: Distributed, caplog: pytest.LogCaptureFixture) -> None:
    count = _Count()
    run = _build(tmp_path, dist, "checkpoint.every_kimg=0.5", callbacks=[count])
    assert _train_with_nan(run, [1600])
    assert count.calls == 4000 / 50, "those after the checkpoint are counted once"
    assert run.state.nimg == 4000
    assert run.state.retries == 1
    assert all(parameter.isfinite().all() for parameter in run.state.G.parameters())
    text = caplog.text
    assert "gradients are not finite at 1.6 kimg; norms of D/G in the iterations before: " in text
    assert "went back to 1.5 kimg, to go on with other data (1 of 3)" in text
    again = _build(tmp_path / "again", dist, "checkpoint.every_kimg=0.5")
    again.train(StopSignals())
    assert not torch.equal(again.state.D.state_dict()["layers.0.weight"], run.state.D.state_dict()["layers.0.weight"])
    fresh = _build(tmp_path / "fresh", dist)
    restore(find_checkpoint(tmp_path), fresh.state)
    assert fresh.state.retries == 1


def test_rollback_beyond_a_damaged_checkpoint_comes_by_it_again(tmp_path: Path, dist: Distributed) -> None:
    run = _build(tmp_path, dist, "checkpoint.every_kimg=0.5", "checkpoint.keep=0", "train.kimg=2")
    run.trainer.step.update_D.schedule = lambda nimg: _tear(run, nimg)
    assert _train_with_nan(run, [1600])
    folder = tmp_path / "checkpoints"
    assert [p.name for p in folder.glob("aside-*")] == ["aside-000000001504"]
    for checkpoint in list_checkpoints(tmp_path):
        verify(checkpoint)
    assert [int(p.name) for p in list_checkpoints(tmp_path)] == [512, 1024, 1504, 2016]


def _tear(run: WiredRun, nimg: int) -> dict[str, Any]:
    """Damage the newest checkpoint just before the gradients are spoilt, the first time."""
    if nimg == 1600 and run.state.retries == 0:
        run.save.wait()
        (max((run.save.run_dir / "checkpoints").iterdir()) / "G.safetensors").write_bytes(b"torn")
    return {}


@pytest.mark.parametrize("policy", ["rollback", "stop"])
def test_last_iterations_are_looked_at_when_training_ends(policy: str, tmp_path: Path, dist: Distributed) -> None:
    run = _build(tmp_path, dist, "checkpoint.every_kimg=0.5", f"train.on_nonfinite={policy}")
    if policy == "stop":
        with pytest.raises(UserError, match=r"gradients are not finite at 4\.0 kimg"):
            _train_with_nan(run, [3968])
        return
    assert _train_with_nan(run, [3968])
    assert (run.state.nimg, run.state.retries) == (4000, 1)
    assert find_checkpoint(tmp_path).name == "000000004000"


@pytest.mark.slow
def test_rollback_to_a_smaller_stage_of_growth(tmp_path: Path, dist: Distributed) -> None:
    growing = ["model.name=pggan", "data.image_size=16", "model.g_widths=[8,8,4]", "model.d_widths=[4,8,8]"]
    growing += ["growth.stable_kimg=1", "growth.fade_kimg=1", "checkpoint.every_kimg=0.9", "loss.r1_gamma=0"]
    run = _build(tmp_path, dist, *growing)
    assert _train_with_nan(run, [1216])
    assert run.state.retries == 1
    assert [run.state.G.stage, run.state.D.stage, run.state.G_ema.stage] == [2, 2, 2]
    assert all(parameter.isfinite().all() for parameter in run.state.G.parameters())


def test_rollback_is_tried_so_often_and_no_more(tmp_path: Path, dist: Distributed) -> None:
    run = _build(tmp_path, dist, "checkpoint.every_kimg=0.5", "train.max_rollbacks=2")
    with pytest.raises(UserError, match=r"not finite at 1\.6 kimg.*last good checkpoint is in"):
        _train_with_nan(run, [1600, 1600, 1600])
    assert run.state.retries == 2
    run.save.wait()
    assert int(find_checkpoint(tmp_path).name) == 1504


def test_stop_keeps_the_last_good_checkpoint(
    tmp_path: Path, dist: Distributed, caplog: pytest.LogCaptureFixture
) -> None:
    run = _build(tmp_path, dist, "checkpoint.every_kimg=0.5", "train.on_nonfinite=stop")
    with pytest.raises(UserError, match=r"train\.on_nonfinite=rollback"):
        _train_with_nan(run, [1600])
    assert "gradients are not finite at 1.6 kimg; norms of D/G" in caplog.text
    run.save.wait()
    assert find_checkpoint(tmp_path).name == "000000001504"


def test_checkpoint_is_skipped_while_another_is_being_written(
    tmp_path: Path, dist: Distributed, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disk_is_free = threading.Event()
    write = save.write_checkpoint

    def slow(*arguments: Any) -> None:
        disk_is_free.wait(60)
        write(*arguments)

    monkeypatch.setattr(save, "write_checkpoint", slow)
    monkeypatch.setattr(save.SaveCheckpoint, "__call__", save.SaveCheckpoint.__call__.__wrapped__)
    run = _build(tmp_path, dist, "checkpoint.every_kimg=0.5", "checkpoint.keep=0")
    for nimg in (512, 1024):
        run.state.nimg = nimg
        run.save(run.state)
    assert "1.0 kimg: skipped a checkpoint; the previous one is still being written" in caplog.text
    disk_is_free.set()
    assert run.save.wait()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["000000000512"]


def test_nothing_is_written_where_a_directory_was_moved_while_a_checkpoint_was_on_its_way(
    tmp_path: Path, dist: Distributed, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    run = _build(folder, dist, "checkpoint.every_kimg=0.5")

    def move() -> None:
        """Called in place of the wait for the copies, after the run has looked where its directory is."""
        folder.rename(tmp_path / "moved")
        folder.mkdir()

    monkeypatch.setattr(save, "take_snapshot", lambda *arguments: replace(take_snapshot(*arguments), arrived=move))
    run.state.nimg = 512
    run.save(run.state)
    assert not run.save.wait()
    assert list(folder.iterdir()) == []
    assert "was moved or replaced" in caplog.text


@pytest.mark.slow
def test_skip_goes_on_and_tells(tmp_path: Path, dist: Distributed, caplog: pytest.LogCaptureFixture) -> None:
    run = _build(tmp_path, dist, "train.on_nonfinite=skip")
    assert _train_with_nan(run, [1600, 1632, 2016])
    assert all(parameter.isfinite().all() for parameter in run.state.D.parameters())
    assert run.state.retries == 0
    told = [line for line in caplog.messages if "gradients are not finite" in line]
    assert [line.split(" kimg")[0] for line in told] == [f"gradients are not finite at {n}" for n in ("1.6", "2.0")]
    assert all(line.split(": ")[1].count("/") == 4 for line in told), "the norms of four iterations before"


def test_hopeless_run_ends_with_one_line(train: Train) -> None:
    result = train("run.dir=run", "optim.D.lr=1e30", "train.max_rollbacks=1", "checkpoint.every_kimg=0.1")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "gradients are not finite" in result.stderr or "no checkpoint" in result.stderr


# --- data -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "images"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for i in range(64):
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i:02d}.png")
    return folder


FOLDER = ["data.name=folder", "data.root=images", "data.image_size=8", "data.memory_gib=1e-9",
          "model.conditional=false"]  # fmt: skip


@pytest.mark.slow
def test_file_that_vanishes_is_skipped_or_named(images: Path, tmp_path: Path) -> None:
    process = _started(tmp_path, *FOLDER, "data.workers=1")
    (images / "07.png").unlink()
    assert "07.png" in read_until(process, "07.png")
    read_until(process, "kimg  D ")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 75


@pytest.mark.slow
def test_killed_data_worker_ends_the_run_with_one_line(images: Path, tmp_path: Path) -> None:
    process = _started(tmp_path, *FOLDER, "data.workers=2")
    while not list_checkpoints(tmp_path / "run"):
        read_until(process, "kimg  D ")
    listed = Path(f"/proc/{process.pid}/task").glob("*/children")  # a thread forks the workers
    children = [pid for path in listed for pid in path.read_text().split()]
    workers = [pid for pid in children if "resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_text()]
    os.kill(int(workers[0]), signal.SIGKILL)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert error.count("\n") == 1, error
    assert "a data worker has died" in error
    assert find_checkpoint(tmp_path / "run")


@pytest.mark.slow
def test_killed_wandb_service_costs_training_nothing(tmp_path: Path) -> None:
    process = _started(tmp_path, "tracking.wandb=offline")
    deadline = time.monotonic() + 60
    services: list[str] = []
    while not services:
        assert time.monotonic() < deadline
        read_until(process, "kimg  D ")
        children = Path(f"/proc/{process.pid}/task").glob("*/children")
        pids = [pid for path in children for pid in path.read_text().split()]
        services = [pid for pid in pids if b"wandb-core" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(int(services[0]), signal.SIGKILL)
    for _ in range(5):
        read_until(process, "kimg  D ")
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 75, error
    assert "Traceback" not in error


def test_run_directory_that_cannot_be_written_gets_one_line(train: Train, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.lock").mkdir()  # root may write everywhere, but not a file over a directory
    result = train("run.dir=run")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "run.dir=run: cannot write there" in result.stderr


@pytest.fixture
def _own_log() -> Iterator[None]:
    """Runs inside this process leave the log as it was."""
    log = logging.getLogger("gan_dist")
    before = log.handlers, log.level, logging.raiseExceptions
    yield
    (log.handlers, level, logging.raiseExceptions) = before
    log.setLevel(level)


@pytest.mark.parametrize("name", ["log.txt", "samples", "metrics.jsonl"])
@pytest.mark.usefixtures("_own_log")
def test_file_that_cannot_be_written_at_the_start_gets_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    (Path("run") / name).touch() if name == "samples" else (Path("run") / name).mkdir()
    assert main(["train", *SMALL, "run.dir=run"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert f"run.dir=run holds {name} but no run" in error


@pytest.mark.usefixtures("_own_log")
def test_run_is_locked_and_neither_overwritten_nor_begun_by_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def build_a_run(*_: Any) -> WiredRun:
        with pytest.raises(UserError, match="is in use by process"):
            lock_run(Path("run"))
        raise UserError("locked")

    monkeypatch.setattr("gan_dist.run.build", build_a_run)
    assert main(["train", *SMALL, "run.dir=run"]) == 1
    assert capsys.readouterr().err == "gan-dist: error: locked\n"
    assert not Path("run").exists(), "a failed start leaves no directory"
    Path("run").mkdir()
    Path("run/config.yaml").write_text("train: {kimg: 1}\n")
    assert main(["train", *SMALL, "run.dir=run"]) == 2
    assert "run.dir=run already holds a run: go on with it by resume=latest" in capsys.readouterr().err
    assert main(["train", *SMALL, "run.dir=none", "resume=latest"]) == 1
    assert capsys.readouterr().err == "gan-dist: error: none: no such run directory\n"
    assert not Path("none").exists()


def test_exit_status_tells_a_stopped_run_from_a_finished_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for finished, status in ((True, 0), (False, 75)):
        monkeypatch.setattr("gan_dist.run.train", lambda *_, finished=finished: finished)
        assert main(["train"]) == status


LINKS = ("metrics.tmp", "checkpoints", ".owner", ".lock", "log.txt", "samples", "samples/grid-000000.000.png")


@pytest.mark.parametrize("name", LINKS)
@pytest.mark.usefixtures("_own_log")
def test_run_directory_with_a_link_is_refused_before_anything_is_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("real").mkdir()
    Path("run").symlink_to("real")  # the directory itself may be one
    lock_run(Path("run")).release()
    victim, link = Path("victim").absolute(), Path("run") / name
    victim.touch() if "." in name else victim.mkdir()
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(victim)
    for command in (["train", *SMALL, "run.dir=run"], ["evaluate", "run"]):
        assert main(command) == 1
        assert f"{link} is a link" in capsys.readouterr().err
    assert not (victim.read_bytes() if victim.is_file() else list(victim.iterdir()))
    assert not Path("run/config.yaml").exists()


def test_other_images_of_the_same_number_are_another_run(images: Path, tmp_path: Path, dist: Distributed) -> None:
    settings = [*FOLDER, f"data.root={images}"]
    run = _build(tmp_path / "run", dist, *settings)
    assert run.save.now(run.state)
    checkpoint = find_checkpoint(tmp_path / "run")
    _build(tmp_path / "run", dist, *settings, "data.memory_gib=1", checkpoint=checkpoint)
    Image.new("RGB", (8, 8)).save(images / "07.png")
    with pytest.raises(ConfigError, match="the data set's content differs"):
        _build(tmp_path / "run", dist, *settings, checkpoint=checkpoint)


def test_other_pixels_in_a_file_of_the_same_size_are_another_run(tmp_path: Path, dist: Distributed) -> None:
    """Where all images are in memory, each pixel counts."""
    for i in range(100):
        path = tmp_path / f"images/{i:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (i, 0, 0)).save(path, compress_level=0)
    settings = [*FOLDER, f"data.root={tmp_path / 'images'}", "data.memory_gib=1"]
    run = _build(tmp_path / "run", dist, *settings)
    assert run.save.now(run.state)
    size = path.stat().st_size
    Image.new("RGB", (8, 8), (0, 0, 99)).save(path, compress_level=0)
    assert path.stat().st_size == size
    with pytest.raises(ConfigError, match="the data set's content differs"):
        _build(tmp_path / "run", dist, *settings, checkpoint=find_checkpoint(tmp_path / "run"))


def test_exactly_what_was_learned_is_in_the_weights(train: Train, tmp_path: Path) -> None:
    """The last checkpoint of a run is that of its last iteration, whatever the interval."""
    assert train("run.dir=run", "checkpoint.every_kimg=3").returncode == 0
    names = sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())
    assert names == ["000000003008", "000000004000"]
    facts = json.loads((tmp_path / "run/checkpoints/000000004000/state.json").read_text())
    assert facts["nimg"] == 4000
    assert load_file(tmp_path / "run/checkpoints/000000004000/G.safetensors")


def test_writer_of_checkpoints_starts_no_threads_of_its_own(tmp_path: Path, dist: Distributed) -> None:
    """Those of training would no longer have a core each, and OpenMP would let them sleep between operations."""
    torch.set_num_threads(2)
    try:
        run = _build(tmp_path, dist, "checkpoint.every_kimg=1", "model.g_widths=[4096]")
        run.trainer.step(run.trainer.batches)
        large = torch.ones(1_000_000)
        large.isfinite().all()  # the threads of training are there now
        before = len(list(Path("/proc/self/task").iterdir()))
        assert run.save.now(run.state)
        assert len(list(Path("/proc/self/task").iterdir())) <= before + 1, "the writer itself"
    finally:
        torch.set_num_threads(1)
