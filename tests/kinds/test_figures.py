"""Figures that are not identified: what they are measured with and against, and which of them may be compared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from program import Program
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gan_dist.metrics import weights_hash
from gan_dist.metrics.classifier import Classifier

pytestmark = pytest.mark.slow

MEASURED = ["metrics.every_kimg=1", "metrics.num_images=100", "train.kimg=0.5", "checkpoint.every_kimg=0.5"]
FOLDER = ["data.name=folder", "data.root=images", "data.class_folders=true", "data.image_size=8"]


def _pictures(root: Path, classes: int, count: int, size: int = 8, bright: int = 0) -> None:
    """A folder for each class with as many pictures: noise around a brightness of its own."""
    generator = np.random.default_rng(0)
    for label in range(classes):
        folder = root / f"class{label}"
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            noise = generator.integers(0, 60, (size, size, 3))
            Image.fromarray((noise + bright + 100 * label // classes).astype(np.uint8)).save(folder / f"{i:03d}.png")


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _fid(run: Path) -> dict[str, Any]:
    """The last line of a run's metrics with an FID."""
    return [line for line in _lines(run / "metrics.jsonl") if "fid_classifier" in line][-1]


def _one_line(result: Any, *texts: str) -> None:
    """A refusal: status 2, one line of error, no traceback."""
    assert result.returncode == 2, result.stdout + result.stderr
    errors = [line for line in result.stderr.splitlines() if "error" in line]
    assert len(errors) == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert all(text in errors[0] for text in texts), errors


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of its own, with classifiers that are trained for a short time, which is enough for these pictures."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("GAN_DIST_CACHE", str(folder))
        patch.setattr("gan_dist.metrics.classifier.STEPS", 150)
        yield folder


@pytest.fixture(scope="module")
def trained(shared_program: Program) -> Path:
    """A directory with two runs, on handwritten digits and on pictures in two folders."""
    _pictures(shared_program.cwd / "images", 2, 40)
    for arguments in (["run.dir=digits"], ["run.dir=run", *FOLDER]):
        result = shared_program.train(*MEASURED, *arguments)
        assert result.returncode == 0, result.stderr
    return shared_program.cwd


@pytest.fixture
def copied(program: Program, trained: Path) -> Program:
    """The command line in a copy of that directory."""
    return program.with_copy_of(trained)


@pytest.mark.clause("1.8", "the protocol names neither the data's content nor their size, nor the extractor's weights")
def test_protocol_identifies_what_is_measured_with_and_against(copied: Program) -> None:
    before = _fid(copied.cwd / "run")["protocol"]
    assert before["image_shape"] == [3, 8, 8]
    assert len(before["weights"]) == 64
    assert {"precision", "resizing", "num_real", "num_generated", "extractor", "seed"} <= before.keys()
    assert "torchmetrics" in before["library"]
    assert "torch-fidelity" in before["library"]
    command = ["evaluate", "run", "--n", "100", "data.root=images"]
    assert copied(*command).returncode == 0
    assert _lines(copied.cwd / "run/evaluations.jsonl")[-1]["protocol"] == before
    Image.new("RGB", (8, 8), "white").save(copied.cwd / "images/class0/000.png")
    assert copied(*command).returncode == 0
    assert _lines(copied.cwd / "run/evaluations.jsonl")[-1]["protocol"]["data"] != before["data"]


@pytest.mark.clause("1.8", "evaluate RUN data.image_size=... gives a figure that can't be told from the right one")
@pytest.mark.clause("1.8", "other channels or classes end in tracebacks")
@pytest.mark.parametrize(
    ("settings", "texts"),
    [
        (["data.image_size=16"], ["images of 3x8x8", "are 3x16x16", "data.image_size"]),
        (["data.channels=1"], ["are 1x8x8", "data.channels"]),
        (["data.root=three"], ["takes 2 classes, and the data set has 3", "data.root"]),
        (["data.class_folders=false"], ["takes 2 classes, and the data set has 0"]),
    ],
)
def test_data_that_do_not_fit_the_generator_are_refused(settings: list[str], texts: list[str], copied: Program) -> None:
    _pictures(copied.cwd / "three", 3, 30)
    _one_line(copied("evaluate", "run", "--n", "100", *settings), *texts)
    assert not (copied.cwd / "run/evaluations.jsonl").exists()


@pytest.mark.clause("1.8", "relative paths read another folder when started elsewhere")
def test_evaluation_elsewhere_reads_the_same_folder(trained: Path, program: Program) -> None:
    """Another folder of the same name is there, too."""
    run = shutil.copytree(trained / "run", program.cwd / "run")
    _pictures(program.cwd / "images", 2, 40, bright=90)
    assert program("evaluate", str(run), "--n", "100").returncode == 0
    (result,) = _lines(run / "evaluations.jsonl")
    assert result["fid_classifier"] == _fid(run)["fid_classifier"]
    assert "root: images\n" in (run / "config.yaml").read_text(), "what was typed"
    assert program("evaluate", str(run), "--n", "100", "data.root=images").returncode == 0
    assert _lines(run / "evaluations.jsonl")[-1]["fid_classifier"] != result["fid_classifier"]


@pytest.mark.clause("1.8", "figures of other protocols are compared for the best checkpoint")
@pytest.mark.clause("1.8", "a new protocol continues the series of the old one")
def test_other_protocol_starts_a_new_series(copied: Program) -> None:
    """The classifier of another seed gives far higher figures of any generator."""
    settings = [*FOLDER, "run.dir=new", "metrics.every_kimg=0.5", "checkpoint.every_kimg=0.5", "checkpoint.keep=9"]
    few = ["metrics.num_images=100"]
    assert copied.train(*settings, *few, "metrics.seed=4", "train.kimg=1").returncode == 0
    result = copied.train(*settings, *few, "metrics.seed=2", "train.kimg=1.5", "resume=latest")
    assert result.returncode == 0, result.stderr
    assert copied("evaluate", "new", "--checkpoint", "best", "--n", "100").returncode == 0
    assert _lines(copied.cwd / "new/evaluations.jsonl")[0]["kimg"] > 1, "the first of the new series"
    lines = [line for line in _lines(copied.cwd / "new/metrics.jsonl") if "protocol" in line]
    assert ["fid_classifier" in line for line in lines] == [True, True, True, False]
    assert "fid_classifier_series2" in lines[-1]
    log = (copied.cwd / "new/log.txt").read_text()
    (said,) = [line for line in log.splitlines() if "measured in another way than before" in line]
    assert "seed: 4 -> 2" in said
    assert copied.train(*settings, *few, "metrics.seed=2", "train.kimg=2", "resume=latest").returncode == 0
    assert "fid_classifier_series2" in _lines(copied.cwd / "new/metrics.jsonl")[-1], "the same series goes on"
    assert (copied.cwd / "new/log.txt").read_text().count("measured in another way than before") == 1


@pytest.mark.clause("1.8", "figures of other protocols are taken as done")
def test_results_of_other_data_do_not_count_as_done(copied: Program) -> None:
    command = ["evaluate", "run", "--checkpoint", "all", "--n", "100", "data.root=images"]
    assert copied(*command).returncode == 0
    results = copied.cwd / "run/evaluations.jsonl"
    count = len(_lines(results))
    assert copied(*command).returncode == 0
    assert len(_lines(results)) == count, "the same once more"
    _pictures(copied.cwd / "images", 2, 40, bright=90)
    again = copied(*command)
    assert again.returncode == 0
    assert len(_lines(results)) == 2 * count
    said = [line for line in again.stdout.splitlines() if "measured in another way" in line]
    assert len(said) == 1
    assert "data: " in said[0]


def _zeros(file: Path) -> None:
    save_file({name: torch.zeros_like(tensor) for name, tensor in load_file(file).items()}, file, _noted(file))


def _nan(file: Path) -> None:
    save_file({name: tensor * torch.nan for name, tensor in load_file(file).items()}, file, _noted(file))


def _zeros_with_their_hash(file: Path) -> None:
    """Made by somebody who knows what is checked."""
    tensors = {name: torch.zeros_like(tensor) for name, tensor in load_file(file).items()}
    _save(file, tensors, known="0.000000")


def _noted(file: Path) -> dict[str, str] | None:
    with safe_open(file, "pt") as opened:
        return opened.metadata()


def _save(file: Path, tensors: dict[str, torch.Tensor], known: str) -> None:
    classifier = Classifier(tensors["body.0.weight"].shape[1], len(tensors["head.bias"]))
    classifier.load_state_dict(tensors)
    save_file(tensors, file, {"sha256": weights_hash(classifier), "known": known})


@pytest.mark.clause("1.8", "a poisoned classifier in the cache gives FID 0")
@pytest.mark.parametrize("poison", [_zeros, _nan, _zeros_with_their_hash])
def test_poisoned_classifier_in_the_cache_is_not_used(
    poison: Callable[[Path], None], trained: Path, cache: Path, program: Program, tmp_path: Path
) -> None:
    shutil.copytree(trained / "images", program.cwd / "images")
    shutil.copytree(cache, tmp_path / "cache")
    files = list((tmp_path / "cache").glob("classifier-*.safetensors"))
    for file in files:
        poison(file)
    env = {"GAN_DIST_CACHE": str(tmp_path / "cache")}
    result = program.train(*FOLDER, *MEASURED, "run.dir=run", env=env)
    assert result.returncode == 0, result.stderr
    assert _fid(program.cwd / "run")["fid_classifier"] == _fid(trained / "run")["fid_classifier"]
    log = (program.cwd / "run/log.txt").read_text()
    assert log.count("this classifier is not used") == 1
    assert any(f"{file}: this classifier is not used" in log for file in files)


@pytest.mark.clause("1.8", "another classifier in the cache changes the figures of a run")
def test_own_copy_of_the_classifier_wins(copied: Program, cache: Path, tmp_path: Path) -> None:
    """The other one is as good: it gives the same answers, but its features are larger."""
    shutil.copytree(cache, tmp_path / "cache")
    for file in (tmp_path / "cache").glob("classifier-*.safetensors"):
        tensors = load_file(file)
        tensors = {name: 3 * tensor if name.startswith("body.8") else tensor for name, tensor in tensors.items()}
        _save(file, tensors, known="0.500000")
    env = {"GAN_DIST_CACHE": str(tmp_path / "cache")}
    assert copied("evaluate", "run", "--n", "100", env=env).returncode == 0
    (result,) = _lines(copied.cwd / "run/evaluations.jsonl")
    assert result["fid_classifier"] == _fid(copied.cwd / "run")["fid_classifier"]


@pytest.mark.clause("1.8", "a classifier of fewer than two classes gives figures")
def test_one_class_gives_no_figure(program: Program) -> None:
    _pictures(program.cwd / "images", 1, 40)
    _one_line(program.train(*FOLDER, *MEASURED, "run.dir=run"), "one class", "metrics.extractor=inception")


@pytest.mark.clause("1.8", "a classifier without skill (4,000 classes of one picture) gives figures")
@pytest.mark.parametrize(("classes", "count", "text"), [(64, 1, "learnt by heart"), (2, 20, "knows only 50.0%")])
def test_classifier_without_skill_gives_no_figure(classes: int, count: int, text: str, program: Program) -> None:
    """Classes of one picture, or equal pictures in two classes. Training goes on, and says why there is no figure."""
    if count == 1:
        _pictures(program.cwd / "images", classes, count)
    else:
        _pictures(program.cwd / "images", 1, count)
        shutil.copytree(program.cwd / "images/class0", program.cwd / "images/class1")
    result = program.train(*FOLDER, *MEASURED, "run.dir=run")
    assert result.returncode == 0, result.stderr
    assert not any("fid_classifier" in line for line in _lines(program.cwd / "run/metrics.jsonl"))
    log = (program.cwd / "run/log.txt").read_text()
    (said,) = [line for line in log.splitlines() if "no figures are measured" in line]
    assert text in said
    assert "metrics.extractor=inception" in said
    evaluated = program("evaluate", "run", "--n", "100")
    assert evaluated.returncode == 1
    assert text in evaluated.stderr
    assert not (program.cwd / "run/evaluations.jsonl").exists()


def _idx(root: Path, labels: np.ndarray) -> None:
    """A data set in the format of MNIST."""
    folder = root / "MNIST/raw"
    folder.mkdir(parents=True, exist_ok=True)
    images = (
        np.random.default_rng(0).integers(0, 60, (len(labels), 28, 28))
        + 80 * (np.arange(len(labels)) % 2)[:, None, None]
    )
    header = np.array([0x803, len(labels), 28, 28], dtype=">i4").tobytes()
    (folder / "train-images-idx3-ubyte").write_bytes(header + images.astype(np.uint8).tobytes())
    header = np.array([0x801, len(labels)], dtype=">i4").tobytes()
    (folder / "train-labels-idx1-ubyte").write_bytes(header + labels.astype(np.uint8).tobytes())


@pytest.mark.clause("1.8", "labels put right leave the classifier of the wrong ones in use")
def test_labels_put_right_give_a_new_classifier(program: Program, tmp_path: Path) -> None:
    env = {"GAN_DIST_CACHE": str(tmp_path / "cache")}
    settings = ["data.name=MNIST", "data.root=data", "data.image_size=8", *MEASURED, "train.kimg=0.1"]
    right = np.arange(200) % 2
    wrong = right.copy()
    wrong[101] = 0  # none of the 64 images that were looked at
    for name, labels in (("wrong", wrong), ("right", right)):
        _idx(program.cwd / "data", labels)
        result = program.train(*settings, f"run.dir={name}", env=env)
        assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / "cache").glob("classifier-*.safetensors"))) == 2


@pytest.mark.clause("1.8", "the classifier of stacked images isn't prepared by prefetch")
def test_classifier_of_stacked_images_is_prefetched(program: Program, tmp_path: Path) -> None:
    env = {"GAN_DIST_CACHE": str(tmp_path / "cache")}
    result = program("prefetch", "data.stacked=true", "model.conditional=false", env=env)
    assert result.returncode == 0, result.stderr
    assert "metrics  classifier in " in result.stdout
    assert list((tmp_path / "cache").glob("classifier-*.safetensors"))


@pytest.mark.clause("1.8", "few images are not said")
def test_few_images_are_said(copied: Program) -> None:
    log = (copied.cwd / "digits/log.txt").read_text()
    (said,) = [line for line in log.splitlines() if "FID of few images is far too high" in line]
    assert "metrics.num_images=100, measured against 1797 real images" in said
    assert "far too high" in copied("evaluate", "digits", "--n", "200").stdout
    assert "far too high" not in copied("evaluate", "digits", "--n", "10000").stdout


@pytest.mark.clause("1.8", "evaluations.jsonl with a torn last line swallows the next result")
def test_torn_last_line_does_not_swallow_the_next_result(copied: Program) -> None:
    results = copied.cwd / "digits/evaluations.jsonl"
    results.write_text('{"checkpoint": "000000000500", "kimg": 0.5, "fid_clas')
    assert copied("evaluate", "digits", "--n", "100").returncode == 0
    assert json.loads(results.read_text().splitlines()[-1])["checkpoint"] == "000000000512"


@pytest.mark.clause("1.8", "NaN and infinite means make a whole interval null")
def test_values_that_are_not_finite_leave_the_mean_of_the_others(program: Program) -> None:
    """The first iteration is sound. Its step destroys the weights, so nothing is finite from the second one on."""
    diverging = ["optim.D.lr=1e30", "train.on_nonfinite=skip", "log.every_kimg=0.064", "sample.every_kimg=0"]
    result = program.train("run.dir=run", "train.kimg=0.5", *diverging)
    assert "Traceback" not in result.stderr
    first = _lines(program.cwd / "run/metrics.jsonl")[0]
    assert first["kimg"] == 0.064
    assert 0 < first["loss_D"] < 100
    assert first["loss_D_nonfinite"] == 0.5
