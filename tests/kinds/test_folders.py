"""Folders that were listed in silence: what is a class, what was left out, and which names the classes have."""

from __future__ import annotations

import ctypes
import json
import struct
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from program import Program, Result

FOLDER = ["data.name=folder", "data.root=images", "data.image_size=8", "data.channels=1"]
CLASSES = [*FOLDER, "data.class_folders=true"]
PLAIN = [*FOLDER, "model.conditional=false", "metrics.every_kimg=0"]


def put(path: Path, count: int, gray: int = 0) -> None:
    """Write some pictures of 8x8 pixels of one gray into a folder."""
    path.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("L", (8, 8), gray).save(path / f"{i}.png")


def state_of(run: Path) -> dict[str, object]:
    """The newest `state.json` of a run."""
    state: dict[str, object] = json.loads((max((run / "checkpoints").iterdir()) / "state.json").read_text())
    return state


def said(result: Result) -> str:
    return result.stdout + result.stderr


@pytest.mark.clause("1.5", "hidden and empty subfolders become classes and shift all labels")
def test_hidden_and_empty_folders_are_no_classes(program: Program) -> None:
    put(program.cwd / "images/cat", 40, 50)
    put(program.cwd / "images/dog", 40, 200)
    put(program.cwd / "images/.ipynb_checkpoints", 2)
    (program.cwd / "images/aardvark").mkdir()
    result = program.train(*CLASSES, "train.kimg=0.064", "run.dir=run")
    assert result.returncode == 0, result.stderr
    assert state_of(program.cwd / "run")["num_classes"] == 2
    log = (program.cwd / "run/log.txt").read_text()
    assert "2 classes with their numbers of images: cat (40), dog (40)" in log
    assert "left out 1 hidden files and folders, for example .ipynb_checkpoints" in log
    assert "left out 1 class folders without images, for example aardvark" in log


@pytest.mark.clause("1.5", "folders 0 to 11 are sorted as text: class 2 is folder 10")
@pytest.mark.clause("1.5", "class names are not stored with the run")
def test_names_that_are_numbers_are_sorted_as_numbers_and_kept(program: Program) -> None:
    """The pictures of folder k have the gray 20 * k."""
    for k in range(12):
        put(program.cwd / f"images/{k}", 4, 20 * k)
    assert program.train(*CLASSES, "train.kimg=0.032", "run.dir=run", "sample.rows=2").returncode == 0
    picture = np.asarray(Image.open(program.cwd / "run/samples/real-000000.000.png"))
    cell = (picture.shape[1] - 6) // 12
    assert [int(picture[-20, 10 + cell * k]) for k in range(12)] == [20 * k for k in range(12)]
    assert state_of(program.cwd / "run")["class_names"] == [str(k) for k in range(12)]


@pytest.mark.clause("1.5", "--classes takes numbers only, grids have no captions")
def test_classes_are_asked_for_and_shown_by_name(program: Program) -> None:
    put(program.cwd / "images/circles", 20, 50)
    put(program.cwd / "images/squares", 20, 200)
    result = program.train(*CLASSES, "train.kimg=0.032", "run.dir=run")
    assert result.returncode == 0, result.stderr
    for number, classes in enumerate(("1", "squares")):
        result = program("sample", "run", "--n", "4", "--classes", classes, "--grid", "--out", f"out{number}")
        assert result.returncode == 0, result.stderr
    (by_number,), (by_name,) = ((program.cwd / out).rglob("grid.png") for out in ("out0", "out1"))
    assert by_number.read_bytes() == by_name.read_bytes()
    wrong = program("sample", "run", "--classes", "stars")
    assert wrong.returncode == 2
    assert "none of the classes circles, squares" in wrong.stderr
    captions = np.asarray(Image.open(program.cwd / "run/samples/real-000000.000.png"))[:12]
    assert captions.max() > 128, "letters are bright on a black line above the pictures"


@pytest.mark.clause("1.5", "symlinked subfolders of an unlabelled set are dropped without a word")
def test_links_to_folders_are_followed(program: Program) -> None:
    put(program.cwd / "images/own", 5)
    put(program.cwd / "elsewhere/deep", 95)
    (program.cwd / "images/more").symlink_to("../elsewhere")
    (program.cwd / "elsewhere/deep/back").symlink_to("../../images")  # for ever, if it were followed
    (program.cwd / "images/again").symlink_to("own")
    result = program("prefetch", *PLAIN, "train.batch_size=1")
    assert "100 of 100 images can be read" in result.stdout, said(result)
    assert "left out 2 links to folders whose images are listed anyway, for example" in said(result)


@pytest.mark.clause("1.5", "images beside the class folders and unknown endings are dropped without a word")
def test_what_is_left_out_is_said_with_its_number_and_an_example(program: Program) -> None:
    put(program.cwd / "images/a", 20)
    put(program.cwd / "images/b", 20)
    put(program.cwd / "images", 30)
    for name in ("photo.heic", "photo.jxl", "photo.mpo", "photo"):
        (program.cwd / "images/a" / name).write_bytes(b"x")
    result = program("prefetch", *CLASSES, "metrics.every_kimg=0", "train.batch_size=16")
    assert result.returncode == 0, result.stderr
    assert "data.root=images: left out 30 files beside the class folders, for example 0.png" in said(result)
    assert "data.root=images: left out 4 files with an unknown ending, for example a/photo" in said(result)


@pytest.mark.clause("1.5", "train/ beside val/ are taken as classes in silence")
@pytest.mark.parametrize("settings", [CLASSES, PLAIN], ids=["classes", "unlabelled"])
def test_parts_of_a_data_set_are_said(settings: list[str], program: Program) -> None:
    for part in ("train", "val"):
        put(program.cwd / "images" / part / "cat", 20)
    result = program("prefetch", *settings, "metrics.every_kimg=0", "train.batch_size=1")
    assert "train and val look like parts of a data set" in said(result)
    assert "set data.root=images/train" in said(result)


@pytest.mark.clause("1.5", "names that look alike are not said")
def test_names_that_look_alike_are_said(program: Program) -> None:
    for name in ("é", unicodedata.normalize("NFD", "é"), "cat", "cat "):
        put(program.cwd / "images" / name, 5)
    result = program("prefetch", *CLASSES, "metrics.every_kimg=0", "train.batch_size=1")
    assert "the classes 'e\\u0301' and '\\xe9' look alike" in said(result)
    assert "the classes 'cat' and 'cat ' look alike" in said(result)


def _without_privileges(work: Callable[[], Result]) -> Result:
    """Call a function in a thread that may read only what its user may, because root may read every folder.

    The processes that the thread starts have no more privileges than the thread.
    """

    def drop_and_work() -> Result:
        libc = ctypes.CDLL(None, use_errno=True)
        for capability in (1, 2):  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
            libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
        header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        assert libc.capget(header, sets) == 0
        for i in range(3):  # effective, permitted, inheritable
            sets[i] &= ~0b110
        assert libc.capset(header, sets) == 0
        return work()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(drop_and_work).result()


@pytest.mark.clause("1.5", "a subfolder without permission is dropped without a word")
def test_folder_that_cannot_be_read_is_an_error(program: Program) -> None:
    put(program.cwd / "images/a", 5)
    put(program.cwd / "images/locked", 80)
    (program.cwd / "images/locked").chmod(0)
    result = _without_privileges(lambda: program("prefetch", *PLAIN, "train.batch_size=1"))
    (program.cwd / "images/locked").chmod(0o755)
    assert result.returncode == 1, said(result)
    assert "images/locked: cannot be read (Permission denied)" in result.stderr


@pytest.mark.clause("1.5", "an IDX set of 200 images says 60,000")
def test_set_of_two_hundred_images_says_so(program: Program) -> None:
    (program.cwd / "few").mkdir()
    images = np.random.default_rng(0).integers(0, 256, (200, 28, 28), dtype=np.uint8)
    for name, array in (("images-idx3", images), ("labels-idx1", (np.arange(200) % 10).astype(np.uint8))):
        header = struct.pack(f">HBB{array.ndim}i", 0, 8, array.ndim, *array.shape)
        (program.cwd / f"few/train-{name}-ubyte").write_bytes(header + array.tobytes())
    result = program.train("data.name=MNIST", "data.root=few", "train.kimg=0.032", "run.dir=run")
    assert "on 200 images of 1x28x28" in result.stdout, said(result)
    assert state_of(program.cwd / "run")["num_images"] == 200


@pytest.mark.clause("3.3", "labels beyond the classes (EMNIST's letters as MNIST) end in a traceback")
def test_labels_beyond_the_classes_give_one_line(program: Program) -> None:
    (program.cwd / "letters").mkdir()
    for name, array in (("images-idx3", np.zeros((52, 28, 28))), ("labels-idx1", np.arange(52) % 26 + 1)):
        header = struct.pack(f">HBB{array.ndim}i", 0, 8, array.ndim, *array.shape)
        content = header + array.astype(np.uint8).tobytes()
        (program.cwd / f"letters/train-{name}-ubyte").write_bytes(content)
    result = program.train("data.name=MNIST", "data.root=letters", "train.kimg=0.032", "run.dir=run")
    assert result.returncode == 1
    assert "data.root=letters holds labels from 1 to 26" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.clause("1.5", "real-*.png shows the first files, not a sample")
def test_picture_of_real_images_is_a_sample(program: Program) -> None:
    (program.cwd / "images").mkdir()
    for i in range(200):
        Image.new("L", (8, 8), i).save(program.cwd / f"images/{i:03d}.png")
    result = program.train(*PLAIN, "train.kimg=0.032", "sample.rows=4", "run.dir=run")
    assert result.returncode == 0, result.stderr
    picture = np.asarray(Image.open(program.cwd / "run/samples/real-000000.000.png"))
    shown = {int(gray) for gray in np.unique(picture)} - {0}
    assert max(shown) > 60, "not the first sixteen of two hundred"
