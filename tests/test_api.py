"""Tests of what can be done from Python: what it computes, and that it leaves the process as it was."""

from __future__ import annotations

import gc
import logging
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import TINY, make_images, run_here, run_there
from launched import free_port
from PIL import Image
from safetensors.torch import load_file

import gan_dist
from gan_dist.cli.arguments import read_config
from gan_dist.errors import ConfigError, UserError
from gan_dist.kernels.switches import numerics
from gan_dist.parallel import signals
from gan_dist.parallel.accelerate_adapter import own_state
from gan_dist.wiring.words import as_words, read_words

SETTINGS = [*TINY, "train.kimg=2"]
LONG = [*TINY, "train.kimg=100000", "log.every_kimg=0.1", "checkpoint.every_kimg=0"]


def _process() -> dict[str, Any]:
    """What a user's program can see of its process."""
    log = logging.getLogger("gan_dist")
    return {
        "signals": {number: signal.getsignal(number) for number in signals.StopSignals.NUMBERS},
        "environment": dict(os.environ),
        "warnings": list(warnings.filters),
        "log": (list(log.handlers), log.level, list(logging.getLogger().handlers)),
        "hooks": (sys.excepthook, sys.exit),
        "directory": Path.cwd(),
        "threads": torch.get_num_threads(),
        "types": (torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()),
        "algorithms": (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic),
        "search": torch.backends.cudnn.benchmark,
        "precision": (torch.get_float32_matmul_precision(), *_newer()),
        "group": torch.distributed.is_initialized(),
        "random": (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()),
    }


def _newer() -> tuple[str, ...]:
    backends: Any = torch.backends
    switches = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul)
    return tuple(switch.fp32_precision for switch in switches)


@pytest.fixture(scope="module")
def messy(tmp_path_factory: pytest.TempPathFactory) -> tuple[gan_dist.Run, dict[str, Any], dict[str, Any]]:
    """A run trained in a process whose user has settings of many kinds; the process before and after it."""
    folder, before = tmp_path_factory.mktemp("messy"), Path.cwd()
    torch.set_float32_matmul_precision("medium")
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = True
    handler = signal.signal(signal.SIGUSR1, lambda *_: None)
    os.chdir(folder)
    with own_state(), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("once")
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=3)
        state = vars(accelerator.state).copy()
        there = _process()
        run = gan_dist.train([*SETTINGS, "run.dir=run", "train.precision=bf16"])
        run = gan_dist.train({"run": {"dir": "other"}, "resume": "auto", **_nested(SETTINGS)})
        left = _process()
        assert vars(accelerator.state) == state
        assert accelerator.gradient_accumulation_steps == 3
        assert accelerator.prepare(torch.nn.Linear(2, 1))(torch.ones(1, 2)).shape == (1, 1)
    torch.set_float32_matmul_precision("highest")
    torch.set_default_dtype(torch.float32)
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False
    signal.signal(signal.SIGUSR1, handler)
    os.chdir(before)
    return run, there, left


def _nested(words: list[str]) -> dict[str, Any]:
    """The words as a mapping of sections."""
    nested: dict[str, Any] = {}
    for word in words:
        name, _, value = word.partition("=")
        section, _, key = name.partition(".")
        nested.setdefault(section, {})[key] = [32] if value == "[32]" else value
    return nested


@pytest.mark.slow
def test_the_process_is_as_before(messy: tuple[gan_dist.Run, dict[str, Any], dict[str, Any]]) -> None:
    _, before, after = messy
    for name, value in before.items():
        assert after[name] == value, name


@pytest.mark.slow
def test_it_trains_as_the_command_line_does(
    messy: tuple[gan_dist.Run, dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    """The same bits, whatever the user of the process has set, and after a run in another precision."""
    run = messy[0]
    assert run_here(tmp_path, "train", *SETTINGS, "run.dir=run").returncode == 0
    weights = "checkpoints/000000002016/G.safetensors"
    ours, theirs = load_file(run.directory / weights), load_file(tmp_path / "run" / weights)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert run.finished
    assert [line["kimg"] for line in run.metrics] == [1.024, 2.016]
    assert run == gan_dist.open_run(run.directory)
    shown = run.show()
    assert isinstance(shown, Image.Image)
    assert np.array_equal(np.asarray(shown), np.asarray(Image.open(run.directory / "samples/grid-000002.016.png")))


@pytest.mark.slow
def test_samples_are_the_command_lines(
    messy: tuple[gan_dist.Run, dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    run = messy[0]
    G = run.G_ema
    arguments = ["--n", "70", "--seed", "3", "--classes", "4,1", "--out", "out"]
    assert run_here(tmp_path, "sample", str(run.directory), *arguments).returncode == 0
    files = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "out").iterdir())]
    images = G.sample(70, classes=[4, "1"], seed=3)
    assert images.dtype == torch.uint8
    assert np.array_equal(images.squeeze(1).numpy(), np.stack(files))
    assert torch.equal(G.sample(2, classes=4, seed=3)[0], images[0])
    assert set(G.state_dict()) == set(load_file(run.directory / "checkpoints/000000002016/G_ema.safetensors"))
    for wrong, text in [({"n": 0}, "n=0"), ({"n": 1, "classes": ["cat"]}, "cat is none of the labels 0 to 9")]:
        with pytest.raises(ConfigError, match=text):
            G.sample(**wrong)


@pytest.mark.slow
def test_a_run_and_a_plain_module_are_measured_alike(
    messy: tuple[gan_dist.Run, dict[str, Any], dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = messy[0]
    monkeypatch.chdir(tmp_path)
    measured = gan_dist.evaluate(run, settings=["train.device=cpu"], n=100)
    assert measured["checkpoint"] == "000000002016"
    assert (run.directory / "evaluations.jsonl").read_text().count("\n") == 1
    module = gan_dist.evaluate(run.G_ema, settings=["train.device=cpu", "loss.r1_gamma=1"], n=100)
    assert module["fid_classifier"] == measured["fid_classifier"]
    assert module["protocol"] == measured["protocol"]
    with pytest.raises(ConfigError, match="its generator makes images of 1x8x8"):
        gan_dist.evaluate(run.G_ema, settings=["train.device=cpu", "data.image_size=16"], n=100)
    with pytest.raises(ConfigError, match="needs the attributes z_dim, num_classes, image_shape"):
        gan_dist.evaluate(torch.nn.Identity())


class _Tell(logging.Handler):
    """Calls a function at a line of the log of a training."""

    def __init__(self, text: str, call: Callable[[], None]) -> None:
        super().__init__()
        self.text, self.call = text, call

    def emit(self, record: logging.LogRecord) -> None:
        if self.text in record.getMessage():
            self.call()


@pytest.fixture
def at_progress() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Let a function be called in the thread that trains, at each line about its progress."""
    log, handlers = logging.getLogger("gan_dist"), []

    def add(call: Callable[[], None]) -> None:
        handlers.append(_Tell("img/s", call))
        log.addHandler(handlers[-1])

    yield add
    for handler in handlers:
        log.removeHandler(handler)


@pytest.mark.slow
def test_ctrl_c_stops_and_a_second_one_interrupts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_progress: Callable[[Callable[[], None]], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGINT)
    interrupts = iter([1, 1, 2])  # at the first line of each training but the last

    def interrupt() -> None:
        for _ in range(next(interrupts, 0)):
            signal.raise_signal(signal.SIGINT)

    at_progress(interrupt)
    first = gan_dist.train([*LONG, "run.dir=run"])
    again = gan_dist.train(["run.dir=run", "resume=latest"])
    assert not again.finished
    assert len(list((tmp_path / "run/checkpoints").iterdir())) == 2
    monkeypatch.setattr(signals, "SAME", -1.0)  # a later SIGINT may come at once
    with pytest.raises(KeyboardInterrupt):
        gan_dist.train(["run.dir=run", "resume=latest"])
    assert signal.getsignal(signal.SIGINT) is handler
    kimg = first.metrics[-1]["kimg"] + 0.1
    done = gan_dist.train(["run.dir=run", "resume=latest", f"train.kimg={kimg}"])  # the directory is free again
    assert done.finished


@pytest.mark.slow
def test_a_training_in_a_thread_is_stopped_from_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_progress: Callable[[Callable[[], None]], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    there, results = threading.Event(), []
    at_progress(there.set)
    thread = threading.Thread(target=lambda: results.append(gan_dist.train([*LONG, "run.dir=run"])), daemon=True)
    thread.start()
    assert there.wait(60)
    with pytest.raises(UserError, match=r"this process trains or evaluates a run already \(/.*/run\)"):
        gan_dist.train([*SETTINGS, "run.dir=second"])
    assert not (tmp_path / "second").exists()
    run = gan_dist.open_run("run")
    assert not run.finished
    assert run.stop()
    thread.join(60)
    assert results == [run]
    assert len(list((tmp_path / "run/checkpoints").iterdir())) == 1
    assert not run.stop(), "nothing trains here any more"


def _held() -> dict[str, Any]:
    """What a process holds: threads, open files, children, and MiB of memory."""
    gc.collect()
    children = [path.read_text().split() for path in Path("/proc/self/task").glob("*/children")]
    return {
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "files": len(os.listdir("/proc/self/fd")),  # noqa: PTH208
        "children": sum(map(len, children)),
        "memory": int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20,
    }


@pytest.mark.slow
def test_five_runs_leave_no_more_than_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_progress: Callable[[Callable[[], None]], None]
) -> None:
    """Also with data workers, and after an error in the user's own code."""
    monkeypatch.chdir(tmp_path)
    make_images(tmp_path / "images")
    settings = ["data.name=folder", "data.root=images", "data.image_size=64", "data.workers=1", "data.memory_gib=1e-6"]
    settings += ["model.conditional=false", "model.g_widths=[256]", "model.d_widths=[256]", "sample.every_kimg=0"]
    settings += ["train.kimg=0.032", "train.batch_size=16", "checkpoint.every_kimg=0", "resume=auto"]
    divisors: list[int] = []
    at_progress(lambda: divisors and 1 // divisors.pop())

    def runs(number: int) -> None:
        divisors.append(0)
        with pytest.raises(ZeroDivisionError):
            gan_dist.train([*TINY, *settings, f"run.dir={number}"])
        assert gan_dist.train([*TINY, *settings, f"run.dir={number}"]).finished, "the directory is free again"

    runs(1)
    first = _held()
    for number in range(2, 6):
        runs(number)
    last = _held()
    assert last["memory"] < first["memory"] + 25, "MiB; the weights and moments of a run have 60"
    assert {**last, "memory": 0} == {**first, "memory": 0}


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ("no_such_recipe", "no_such_recipe"),
        ({"train": {"kimgs": 1}}, "unknown setting train.kimgs; nearest: train.kimg"),
        ({"train.kimg": "many"}, "train.kimg=many"),
        (7, "7 are no settings: give the name of a recipe"),
        (["digits", 7], "are no settings"),
    ],
)
def test_wrong_settings_are_refused(settings: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        gan_dist.train(settings)


def test_settings_of_all_kinds_are_read() -> None:
    words = ["dcgan_cifar10", "train.kimg=1", "train.compile=true", "optim.G.lr=1e-05", "model.g_args={blocks: 2}"]
    words += ["train.augment=[color,cutout]", "run.name=no"]
    nested = {
        "train": {"kimg": np.float64(1), "compile": True, "augment": ("color", "cutout")},
        "optim.G.lr": 1e-05,
        "model": {"g_args": {"blocks": 2}},
        "run": {"name": "no"},
    }
    assert read_words(as_words(["dcgan_cifar10", nested])).config == read_config(words)
    assert read_words(as_words(Path("dcgan_cifar10"))).config == read_config(["dcgan_cifar10"])


def test_there_is_a_line_where_there_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no run in this directory"):
        gan_dist.open_run(tmp_path)


@pytest.mark.parametrize("interface", ["older", "newer"])
@pytest.mark.parametrize("user", ["ieee", "tf32"])
def test_switches_of_either_interface_are_put_back(interface: str, user: str) -> None:
    """torch raises an error if the older interface is read after the newer one was set."""
    backends: Any = torch.backends
    if interface == "older":
        torch.set_float32_matmul_precision("high" if user == "tf32" else "highest")
    else:
        backends.cuda.matmul.fp32_precision = backends.cudnn.conv.fp32_precision = user
    before = _newer()
    try:
        for precision in ("fp32", "tf32"):
            with numerics(precision, exact=True):
                assert backends.cuda.matmul.fp32_precision == ("tf32" if precision == "tf32" else "ieee")
                assert backends.cudnn.conv.fp32_precision == ("tf32" if precision == "tf32" else "none")
            assert _newer() == before
    finally:
        torch.set_float32_matmul_precision("highest")
        backends.cudnn.allow_tf32 = True
        backends.cuda.matmul.fp32_precision = backends.mkldnn.matmul.fp32_precision = "none"


CELL = f"""
import os, sys, gan_dist
assert "torch" not in sys.modules, "import gan_dist is fast"
from accelerate import notebook_launcher

def cell():
    from gan_dist.engine.trainer import Trainer

    settings, train = {SETTINGS}, Trainer.run
    try:
        if os.environ["RANK"] == "1":
            Trainer.run = lambda *_: 1 // 0
        gan_dist.train([*settings, "run.dir=failed"])
    except (ZeroDivisionError, gan_dist.errors.UserError) as error:
        print("failed:", error, flush=True)
    Trainer.run = train
    for name in ("one", "two"):
        run = gan_dist.train([*settings, "run.dir=" + name])
        print(run.directory.name, run.finished, len(run.metrics), flush=True)

notebook_launcher(cell, num_processes=2, use_port=sys.argv[1])
print("both", [gan_dist.open_run(name).finished for name in ("one", "two")])
"""


@pytest.mark.slow
def test_two_processes_of_a_notebook_train_together(tmp_path: Path) -> None:
    """Each process gets the run, and trains a second one, also after one in which one of them has failed."""
    (tmp_path / "cell.py").write_text(CELL)
    result = run_there(tmp_path, "cell.py", str(free_port()))
    assert result.returncode == 0, result.stderr
    assert "failed: integer division or modulo by zero" in result.stdout
    assert "failed: stopped, because rank 1 failed: ZeroDivisionError: integer division or modulo" in result.stdout
    assert result.stdout.count("one True 2") == result.stdout.count("two True 2") == 2
    assert "2 process(es) on 1 node(s), backend gloo" in result.stdout
    assert "both [True, True]" in result.stdout
    ours, theirs = (load_file(tmp_path / name / "checkpoints/000000002016/G.safetensors") for name in ("one", "two"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
