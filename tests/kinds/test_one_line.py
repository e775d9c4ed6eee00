"""What a user can type, what a machine can lack and what a file can hold: one line each, and no traceback."""

from __future__ import annotations

import gzip
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, run_here
from program import COMMAND, TREE, Program, Result

pytestmark = pytest.mark.slow

SMALL = ["train.kimg=0.1", "train.batch_size=32", "model.g_widths=[4]", "model.d_widths=[4]", "data.workers=0"]
SMALL += ["log.every_kimg=0", "sample.every_kimg=0", "tracking.wandb=disabled", "train.device=cpu"]
TRAIN = ["train", *SMALL, "metrics.every_kimg=0"]
MEASURE = ["train", *SMALL, "metrics.every_kimg=0.1"]
LONG = "9" * 20
as_root = pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished run, which no test changes."""
    folder = tmp_path_factory.mktemp("finished")
    assert run_here(folder, *TRAIN, "run.dir=run").returncode == 0
    return folder / "run"


def _one_line(result: Result, status: int, *words: str) -> None:
    assert result.returncode == status, result.stdout + result.stderr
    (line,) = [line for line in result.stderr.splitlines() if "Matplotlib created" not in line]
    assert line.startswith("gan-dist: error: ")
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(
            ["--device", "cuda"], ["--device=cuda cannot be used"],
            marks=pytest.mark.clause("3.3", "--device cuda without a GPU"),
        ),
        pytest.param(
            ["--device", "nonsense"], ["--device=nonsense cannot be used"],
            marks=pytest.mark.clause("3.3", "a device that does not exist"),
        ),
        pytest.param(
            ["--seed", LONG], [f"--seed={LONG}", "9223372036854775807"],
            marks=pytest.mark.clause("3.3", "a seed of 20 digits"),
        ),
        pytest.param(["--out", "FILE"], ["FILE", "--out"], marks=pytest.mark.clause("3.3", "--out FILE")),
        pytest.param(["--out", "FILE/x"], ["FILE/x", "--out"], marks=pytest.mark.clause("3.3", "--out FILE/x")),
    ],
)  # fmt: skip
def test_arguments_of_sample(arguments: list[str], words: list[str], run: Path, program: Program) -> None:
    (program.cwd / "FILE").write_text("mine")
    _one_line(program("sample", str(run), "--n", "2", *arguments), 2, *words)
    assert not (run / "generated").exists()
    assert (program.cwd / "FILE").read_text() == "mine"


@pytest.mark.clause("1.1", "options of the commands take 1_0 for 10 and 010 for 8")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sample", "RUN", "--n", "1_0"], ["--n", "1_0 is not a whole number"]),
        (["sample", "RUN", "--seed", "010"], ["--seed", "010 is not a whole number"]),
        (["sample", "RUN", "--seed", "9" * 50], ["--seed", "at most 40"]),
        (["evaluate", "RUN", "--n", "1e2"], ["--n", "1e2 is not a whole number"]),
        (["plan", "--gpus", "8,1_6"], ["--gpus 8,1_6"]),
        (["plan", "--bandwidth", "1_0"], ["--bandwidth", "1_0 is not a number"]),
        (["plan", "--bandwidth", "1e999"], ["--bandwidth inf"]),
        (["sample"], ["run", "gan-dist sample --help"]),
        (["evaluate", "RUN", "--m", "3"], ["--m", "gan-dist evaluate --help"]),
        (["recipes", "a", "b"], ["b", "gan-dist recipes --help"]),
    ],
)
def test_options_that_are_no_numbers(arguments: list[str], words: list[str], run: Path, program: Program) -> None:
    _one_line(program(*(str(run) if word == "RUN" else word for word in arguments)), 2, *words)


@pytest.mark.clause("3.3", "--n 1")
def test_evaluation_of_one_image(run: Path, program: Program) -> None:
    _one_line(program("evaluate", str(run), "--n", "1"), 2, "metrics.num_images=1", "at least 2")


@pytest.mark.clause("3.3", "metrics.num_images=1")
def test_metrics_of_one_image(program: Program) -> None:
    result = program(*MEASURE, "metrics.num_images=1", "run.dir=run")
    _one_line(result, 2, "metrics.num_images=1", "metrics.every_kimg=0")
    assert not (program.cwd / "run/config.yaml").exists()


@pytest.mark.clause("3.3", "an unwritable cache: found after 40 s of training a classifier")
def test_unwritable_cache(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run keeps a copy of its own, so it goes on, and says so before it trains the classifier."""
    monkeypatch.setattr("gan_dist.metrics.classifier.STEPS", 100)  # enough for the digits
    result = program(*MEASURE, "run.dir=run", env={"GAN_DIST_CACHE": "/proc/cache"})
    assert result.returncode == 0, result.stderr
    said = "/proc/cache: the classifier for the metrics cannot be written there"
    assert 0 <= result.stdout.find(said) < result.stdout.find("trained a classifier")
    assert result.stdout.count("GAN_DIST_CACHE") == 1


def _without_home(command: list[str], cwd: Path) -> Result:
    """Run a command as a user who has neither a name nor a home directory; files are accessed as root."""
    env = {name: value for name, value in os.environ.items() if name not in ("HOME", "USER", "LOGNAME")}
    env |= {"PYTHONPATH": TREE or str(ROOT), "GAN_DIST_CACHE": ""}
    return subprocess.run(
        ["unshare", "--user", "--map-user=54321", "--map-group=54321", sys.executable, "-c", COMMAND, *command],
        cwd=cwd, env=env, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@as_root
@pytest.mark.clause("3.3", "a user without name or HOME")
def test_user_without_name_and_home(program: Program) -> None:
    _one_line(_without_home([*MEASURE, "run.dir=run"], program.cwd), 1, "set GAN_DIST_CACHE to a directory")
    assert not [path for path in program.cwd.iterdir() if path.name != "run"]  # no directory `~`


def _write_idx(folder: Path, labels: np.ndarray, damage: bool = False) -> None:
    folder.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 28, 28), dtype=np.uint8)
    for name, array in (("train-images-idx3-ubyte", images), ("train-labels-idx1-ubyte", labels)):
        header = struct.pack(f">HBB{array.ndim}i", 0, 8, array.ndim, *array.shape)
        content = bytearray(gzip.compress(header + array.tobytes()))
        if damage:
            content[len(content) // 2] ^= 255
            content[11] = 255  # a block of a kind that does not exist
        (folder / f"{name}.gz").write_bytes(content)


@pytest.mark.clause("3.3", "labels beyond the classes (EMNIST's letters as MNIST)")
def test_labels_beyond_the_classes(program: Program) -> None:
    _write_idx(program.cwd / "letters", (np.arange(200) % 26 + 1).astype(np.uint8))
    result = program(*TRAIN, "data.name=MNIST", "data.root=letters", "run.dir=run")
    _one_line(result, 1, "labels from 1 to 26", "labels 0 to 9")


@pytest.mark.clause("3.3", "data.root=set.zip: no such directory")
@pytest.mark.parametrize("name", ["folder", "MNIST"])
def test_archive_as_data_root(name: str, program: Program) -> None:
    (program.cwd / "set.zip").write_bytes(b"PK\3\4")
    conditional = "model.conditional=false"
    result = program(*TRAIN, f"data.name={name}", "data.root=set.zip", conditional, "run.dir=run")
    _one_line(result, 1, "data.root=set.zip is a file", "unpack it")


@pytest.mark.clause("3.3", "a damaged archive: a traceback of zlib")
def test_damaged_gzip(program: Program) -> None:
    _write_idx(program.cwd / "set", np.zeros(50, np.uint8), damage=True)
    result = program(*TRAIN, "data.name=MNIST", "data.root=set", "run.dir=run")
    _one_line(result, 1, "set/train-images-idx3-ubyte.gz: damaged", "fetch it again")


@pytest.mark.clause("3.3", "a damaged archive: 'not below data.root'")
def test_damaged_archive(program: Program) -> None:
    (program.cwd / "set").mkdir()
    (program.cwd / "set/cifar-10-python.tar.gz").write_bytes(b"damaged")
    proxy = {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}  # no download
    result = program(*TRAIN, "data.name=CIFAR10", "data.root=set", "run.dir=run", env=proxy)
    _one_line(result, 1, "set/cifar-10-python.tar.gz is damaged")


@as_root
@pytest.mark.clause("3.3", "a run on a disk that can only be read")
@pytest.mark.parametrize(
    ("command", "status", "words"),
    [
        (["sample", "RUN", "--n", "2"], 2, ["Read-only file system", "--out"]),
        (["evaluate", "RUN", "--n", "2"], 2, ["evaluations.jsonl", "a copy of the run"]),
        ([*TRAIN, "run.dir=RUN", "resume=auto"], 1, ["Read-only file system"]),
    ],
)
def test_run_that_can_only_be_read(
    command: list[str], status: int, words: list[str], run: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount = f"""
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
run = {str(run)!r}.encode()
os.unshare(0x20000) if hasattr(os, "unshare") else libc.unshare(0x20000)  # a mount namespace of its own
MS_BIND, MS_REMOUNT, MS_RDONLY, MS_PRIVATE, MS_REC = 4096, 32, 1, 1 << 18, 16384
assert libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) == 0
assert libc.mount(run, run, None, MS_BIND, None) == 0
assert libc.mount(b"none", run, None, MS_BIND | MS_REMOUNT | MS_RDONLY, None) == 0
"""
    monkeypatch.setattr("program.COMMAND", mount + COMMAND)
    _one_line(program.process(*(word.replace("RUN", str(run)) for word in command)), status, *words)


@pytest.mark.clause("3.3", "Python without SIGUSR1")
def test_python_without_sigusr1(program: Program) -> None:
    code = "import signal; del signal.SIGUSR1; signal.Signals._member_map_.pop('SIGUSR1')\n"
    result = subprocess.run(
        [sys.executable, "-c", code + COMMAND, "train", "train.kimg=-1"],
        cwd=program.cwd, env={**os.environ, "PYTHONPATH": TREE or str(ROOT)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    _one_line(result, 2, "train.kimg=-1")


@pytest.mark.clause("3.3", "threads that can't be started")
@pytest.mark.parametrize("started", [0, 1])
def test_threads_that_cannot_be_started(started: int, program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may start any number, so the method is replaced."""
    limit = f"""
import threading
start, left = threading.Thread.start, [{started}]
def limited(thread):
    left[0] -= 1
    if left[0] < 0:
        raise RuntimeError("can't start new thread")
    start(thread)
threading.Thread.start = limited
"""
    monkeypatch.setattr("program.COMMAND", limit + COMMAND)
    result = program.process(*TRAIN, "run.dir=run", "checkpoint.every_kimg=0.1")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    *_, line = result.stderr.splitlines()  # tqdm warns too, and goes on
    assert line.startswith("gan-dist: error: no more threads or processes can be started")
    assert "ulimit -u" in line
