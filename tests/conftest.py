"""What the tests share: the command line, in this process or in one of its own; a cache; the marks quick and slow."""

from __future__ import annotations

import functools
import io
import logging
import multiprocessing.process
import os
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import numpy as np
import pytest
import torch
from forks import Forked
from launched import launched
from PIL import Image
from program import Program, Result
from sklearn.datasets import load_digits
from torch import Tensor, nn

from gan_dist.checkpoint.state import State
from gan_dist.cli import main
from gan_dist.data.datasets import DATASETS, describe
from gan_dist.data.points import POINTS
from gan_dist.engine.callbacks.save import SaveCheckpoint
from gan_dist.models._layers import MinibatchStd
from gan_dist.parallel.accelerate_adapter import forget_state, own_state
from gan_dist.report.log import log_as_before
from gan_dist.report.versions import package
from gan_dist.settings.config import load_config
from gan_dist.settings.schema import Config, Growth
from gan_dist.wiring.data import source_of
from gan_dist.wiring.networks import make_discriminator, make_generator

if TYPE_CHECKING:
    from slurm_jobs import Slurm

ROOT = Path(__file__).parent.parent
package()  # it asks git once for the commit; later, in a quick test, this would count as a process that the test starts

# Small enough for a second or two of training on one core.
TINY = [
    "train.kimg=4",
    "train.batch_size=32",
    "model.g_widths=[32]",
    "model.d_widths=[32]",
    "log.every_kimg=1",
    "sample.every_kimg=2",
    "checkpoint.every_kimg=2",
    "metrics.every_kimg=0",
    "tracking.wandb=disabled",
    "train.device=cpu",
]


# What makes a recipe of each architecture small; a new architecture needs a line here.
SMALL = {
    "mlp": ["model.g_widths=[32]", "model.d_widths=[32]"],
    "dcgan": ["model.g_widths=[8,4]", "model.d_widths=[4,8]"],
    "sngan": ["model.g_widths=[8,8,4]", "model.d_widths=[4,8,8,8]"],
    "pggan": ["model.g_widths=[8,8,4]", "model.d_widths=[4,8,8]"],
    "r3gan": [
        *("model.g_widths=[8,8,4]", "model.d_widths=[4,8,8]"),
        *("model.g_args={blocks: 1, group_size: 4}", "model.d_args={blocks: 1, group_size: 4}"),
    ],
}


# Handwritten digits are decoded and resized once for each size, not again for each run of this process.
_digits = DATASETS["digits"]
DATASETS.own["digits"] = replace(_digits, load=functools.cache(_digits.load))


# A run skips a checkpoint if the one before is still being written. In the tests of this process it waits instead: on a
# busy machine they would miss checkpoints that they look for.
_save_or_skip = SaveCheckpoint.__call__


@functools.wraps(_save_or_skip)
def _wait_and_save(self: SaveCheckpoint, state: State) -> None:
    self.wait()
    _save_or_skip(self, state)


SaveCheckpoint.__call__ = _wait_and_save  # type: ignore[method-assign]


@functools.cache
def recipe_file(name: str) -> Config:
    """A file of `configs/` as it is; all tests share the one object, and none may change it."""
    return load_config(ROOT / f"configs/{name}.yaml")


def load_recipe(name: str, *overrides: str) -> Config:
    """A file of `configs/` with a small network, on 16x16 handwritten digits whatever its own images are."""
    recipe = recipe_file(name)
    data = (
        []
        if recipe.data.name in POINTS
        else ["data.name=digits", "data.image_size=16", "data.root=data", "data.stacked=false"]
    )
    attention = [f"model.{side}_args={{attention: 8}}" for side in "gd" if "attention" in recipe.model.g_args]
    chosen = [] if recipe.train.batch_size else ["train.batch_size=16"]
    small = [*data, *chosen, *SMALL[recipe.model.name], *attention, "model.z_dim=8"]
    config = load_config(ROOT / f"configs/{name}.yaml", [*small, *overrides])
    if config.growth.stable_kimg:  # to go through all stages soon
        config.growth = Growth(0.03, 0.04, [config.train.batch_size * i for i in (1, 2, 1)])
    return config


@functools.cache
def mixes_samples(name: str) -> bool:
    """D or G of a recipe has statistics of a batch, so that micro-batches change what it computes."""
    config = load_recipe(name)
    info = describe(source_of(config.data))
    networks = [make(config.model, info.image_shape, 0) for make in (make_generator, make_discriminator)]
    return any(isinstance(m, nn.BatchNorm2d | MinibatchStd) for network in networks for m in network.modules())


def make_images(folder: Path) -> None:
    """30 noisy ones in two classes: an epoch is not a whole number of batches."""
    generator = np.random.default_rng(0)
    for i in range(30):
        path = folder / f"{i % 2}/{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)


def write_digits(folder: Path, classes: Iterable[int], most: int) -> None:
    """At most so many of the handwritten digits of each of these classes, 8x8 pixels, in a folder for each class."""
    digits = load_digits()
    for label in classes:
        (folder / str(label)).mkdir()
        for i, image in enumerate(digits.images[digits.target == label][:most]):
            Image.fromarray((image * (255 / 16)).astype(np.uint8)).save(folder / str(label) / f"{i:03d}.png")


RECIPES = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
OF_EACH_ARCHITECTURE = {recipe_file(name).model.name: name for name in reversed(RECIPES)}


def _code_of(name: str) -> str:
    """What decides which code a recipe's iterations run. Sizes, rates and the images themselves decide nothing."""
    config = recipe_file(name)
    model, loss = config.model, config.loss
    penalties = [key for key in ("r1_gamma", "r2_gamma", "gradient_penalty", "clip_weights") if getattr(loss, key)]
    arguments = {key for args in (model.g_args, model.d_args) for key in args if key != "blocks"}
    optimizers = [config.optim.G.name, config.optim.D.name]
    kinds = [config.data.name in POINTS, model.conditional, config.train.augment, config.train.n_critic > 1]
    return f"{model.name} {sorted(arguments)} {loss.name} {penalties} {optimizers} {kinds}"


def _also(name: str) -> set[str]:
    """What a recipe uses of the parts that have nothing to do with its networks and its loss."""
    config = recipe_file(name)
    loss, schedules = config.loss, {side: getattr(config.optim, side) for side in "GD"}
    used = {
        "mirroring": config.data.hflip,
        "drift": loss.drift,
        "a smoothed target": loss.label_smoothing,
        "half of D's loss": loss.d_half,
        "gamma decays": loss.gamma_decay != 1,
        "penalties now and then": loss.penalty_interval > 1,
        "the average's half-life grows": config.ema.growth_kimg,
        **{f"schedule of {side}: {its.schedule}": True for side, its in schedules.items()},
        **{f"beta2 of {side} changes": its.beta2_final for side, its in schedules.items()},
    }
    return {what for what, is_used in used.items() if is_used}


# A recipe of each kind, for expensive tests: the others differ from it in data, sizes and rates, and in what another of
# these recipes uses too.
_of_kind = {_code_of(name): name for name in sorted(RECIPES, key=lambda name: (len(_also(name)), name))}
DISTINCT = sorted(_of_kind.values())
assert set().union(*map(_also, DISTINCT)) == set().union(*map(_also, RECIPES))


# --- quick and slow ---------------------------------------------------------------------------------------------------

# Files whose tests take minutes come first, the longest of all at the very start, so that no worker of pytest-xdist is
# left alone with one at the end.
ORDER = ["test_slurm", "test_distributed", "test_slurm_jobs", "test_resume", "test_processes", "test_shared_gpu"]
ORDER += ["test_reliability", "test_benchmarks", "test_quality", "test_run", "test_fuzz", "test_tracking"]
ORDER += ["test_compile", "test_accelerate_versions", "test_group_of_one", "test_stacked"]
LIMIT = 2.0  # seconds of this process's CPU time that a quick test may take, where `_calculate` takes REFERENCE seconds
REFERENCE = 0.04

# `pytest --hypothesis-profile=full` tries all examples that a test names, and by default a tenth of them.
hypothesis.settings.register_profile("full", deadline=None)
hypothesis.settings.register_profile("quick", deadline=None)
hypothesis.settings.load_profile("quick")


def examples(number: int) -> int:
    """How many hypothesis tries: of the profile "full" all, else a tenth. To be called when a module is imported."""
    return number if hypothesis.settings.get_current_profile_name() == "full" else number // 10


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is not marked slow is quick; slow files are first."""
    order = {name: i for i, name in enumerate(ORDER)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))
    for item in items:
        if not item.get_closest_marker("slow"):
            item.add_marker("quick")
        for mark in item.iter_markers("clause"):
            item.user_properties.append(("clause", mark.args))  # `python tests/kinds` reads it


class _Watch:
    """What starts a process while a test and its fixtures run: the places in the code, one a process."""

    def __init__(self) -> None:
        self.started: list[str] = []
        sys.addaudithook(self._hear)
        start = multiprocessing.process.BaseProcess.start

        @functools.wraps(start)
        def noted(process: multiprocessing.process.BaseProcess) -> None:
            self._note("multiprocessing")  # its spawn makes no audit event
            start(process)

        multiprocessing.process.BaseProcess.start = noted  # type: ignore[method-assign]

    def _hear(self, event: str, _: tuple[object, ...]) -> None:
        if event in ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system"):
            self._note(event)

    def _note(self, what: str) -> None:
        frames = [frame for frame in traceback.extract_stack() if "/tests/" in frame.filename]
        last = frames[-3] if len(frames) > 2 else None  # above this class's own
        where = f" from {Path(last.filename).name}:{last.lineno}" if last else ""
        self.started.append(what + where)


_watch = _Watch()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Iterator[None]:
    _watch.started.clear()
    yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """A quick test that has passed fails if it was slow after all."""
    begun = time.process_time()
    yield
    taken = time.process_time() - begun
    if item.get_closest_marker("slow"):
        return
    if _watch.started:
        pytest.fail(f"it starts a process ({_watch.started[0]}): mark it slow, or do without", pytrace=False)
    if taken > LIMIT and taken > (limit := LIMIT * max(1.0, _calculate() / REFERENCE)):
        pytest.fail(f"it took {taken:.1f} s of CPU time, over {limit:.1f} s: mark it slow", pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape what is not UTF-8 in captured logs, such as names of files, because pytest-xdist could not send it."""
    report = yield
    report.sections = [(title, text.encode(errors="backslashreplace").decode()) for title, text in report.sections]
    return report


def _calculate() -> float:
    """Seconds of CPU time that a fixed calculation takes: a machine may be several times slower from hour to hour."""
    begun = time.process_time()
    x = torch.ones(64, 64)
    for _ in range(3000):
        x = (x @ x).tanh()
    sum(range(1_000_000))
    return time.process_time() - begun


# --- a state that is theirs -------------------------------------------------------------------------------------------


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Classifiers for metrics are trained once for all workers, not read from the user's cache; a thread a process."""
    torch.set_num_threads(1)
    before = dict(os.environ)
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    os.environ["GAN_DIST_CACHE"] = str(base / "cache")
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        os.environ.pop(name, None)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(autouse=True, scope="module")
def _no_accelerate_state() -> None:
    """Reset Accelerate's global state before each file of tests, because it keeps one device and one precision."""
    forget_state()


def start_ranks(
    world_size: int, command: list[str], cwd: Path, fresh: bool = False, **env: str
) -> list[subprocess.Popen[str]]:
    """Start processes that find each other as with a launcher, but without a launcher process above them.

    A single process gets no launcher's variables: with LOCAL_RANK, Accelerate on a CPU would wrap its networks. Fresh
    processes import everything themselves; the others are forks of a process that has done so, which is quicker.
    """
    processes: list[subprocess.Popen[str]] = []
    for place in launched(world_size) if world_size > 1 else [{}]:
        environment = {**os.environ, **place, **env}
        if fresh:
            whole, pipe = [sys.executable, "-u", *command], subprocess.PIPE
            processes.append(subprocess.Popen(whole, cwd=cwd, env=environment, stdout=pipe, stderr=pipe, text=True))
        else:
            processes.append(Forked(command, cwd, environment))
    return processes


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """Read what a process prints up to a line with the text, and return it."""
    assert process.stdout
    lines = ""
    for line in process.stdout:
        lines += line
        if text in line:
            return lines
    pytest.fail(f"ended before it printed {text!r}: {lines}{process.stderr.read() if process.stderr else ''}")


def distance(a: dict[str, Tensor], b: dict[str, Tensor], smallest: float = 1e-7) -> float:
    """The largest difference in any tensor, relative to its largest entry or to `smallest`.

    A difference of 1e-16 is the rounding of float64: D's last bias has no gradient but that in a relativistic loss.
    """
    assert a.keys() == b.keys()
    return max(((a[k].double() - b[k].double()).abs().max() / b[k].abs().max().clamp(min=smallest)).item() for k in a)


# --- the command line -------------------------------------------------------------------------------------------------

Train = Callable[..., Result]


@contextmanager
def _as_it_was() -> Iterator[None]:
    """What a run changes in its process, fresh inside and put back after: directory, environment, log, Accelerate."""
    directory, environment, raises = Path.cwd(), dict(os.environ), logging.raiseExceptions
    try:
        with own_state(), log_as_before():
            yield
    finally:
        logging.raiseExceptions = raises
        os.chdir(directory)
        os.environ.clear()
        os.environ.update(environment)


def run_here(cwd: Path, *arguments: str, env: dict[str, str] | None = None) -> Result:
    """`gan-dist ARGUMENTS` in this process: importing torch in another one takes seconds.

    Warnings go to stderr, as they do outside of pytest.
    """
    out, err = io.StringIO(), io.StringIO()

    def show(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object) -> None:
        err.write(warnings.formatwarning(message, category, filename, lineno))

    with _as_it_was(), redirect_stdout(out), redirect_stderr(err), warnings.catch_warnings():
        warnings.showwarning = show  # type: ignore[assignment]
        os.chdir(cwd)
        os.environ.update(env or {})
        try:
            status = main(list(arguments))
        except SystemExit as end:  # argparse's
            status = end.code if isinstance(end.code, int) else 1
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())


def run_there(cwd: Path, *arguments: str, env: dict[str, str] | None = None) -> Result:
    """`python ARGUMENTS` in a process of its own."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=300,
    )


def _in_order(arguments: Sequence[str], tiny: bool = True) -> list[str]:
    """Tiny settings come after a config file and before the given ones."""
    files = [argument for argument in arguments if "=" not in argument or argument.endswith((".yaml", ".yml"))]
    return [*files, *(TINY if tiny else []), *(argument for argument in arguments if argument not in files)]


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """Run `gan-dist train …` in an empty directory, in this process; the tiny settings come before the given ones."""

    def run(*arguments: str, tiny: bool = True, env: dict[str, str] | None = None) -> Result:
        return run_here(tmp_path, "train", *_in_order(arguments, tiny), env=env)

    return run


@pytest.fixture
def train_process(tmp_path: Path) -> Train:
    """The same as `python train.py …` in a process of its own."""

    def run(*arguments: str, tiny: bool = True, env: dict[str, str] | None = None) -> Result:
        return run_there(tmp_path, str(ROOT / "train.py"), *_in_order(arguments, tiny), env=env)

    return run


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    """The command line in an empty directory, of the tree that `python tests/kinds` names."""
    program = Program(tmp_path, run_here, _in_order)
    yield program
    program.end()


@pytest.fixture(scope="module")
def shared_program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """The same for the tests of a file together: their fixtures make a run there, and each test copies it."""
    program = Program(tmp_path_factory.mktemp("shared"), run_here, _in_order)
    yield program
    program.end()


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A SLURM of two nodes that are both this machine, and the way to submit jobs to it."""
    from slurm_cluster import cluster, missing
    from slurm_jobs import Slurm

    if missing():
        pytest.skip(f"needs {', '.join(missing())}: apt-get install slurm-wlm munge")
    with cluster() as env:
        env.pop("OMP_NUM_THREADS", None)
        env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
        yield Slurm(env, tmp_path_factory.mktemp("slurm"))
