"""Tests of data sets that are given from Python as `dataset=`."""

from __future__ import annotations

import json
import logging
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, _as_it_was, distance, run_here, start_ranks
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from gan_dist import evaluation
from gan_dist import run as runs
from gan_dist.data import DataInfo, Source
from gan_dist.data.datasets import describe, load_dataset
from gan_dist.data.from_python import GivenImages
from gan_dist.data.images import to_tensor
from gan_dist.data.key import data_key, differences, reference_key
from gan_dist.data.loader import make_loader, read_batches
from gan_dist.data.shared import shrink
from gan_dist.errors import ConfigError, UserError
from gan_dist.metrics.extractors import EXTRACTORS
from gan_dist.parallel.distributed import Distributed
from gan_dist.parallel.signals import StopSignals
from gan_dist.rng import Purpose, global_generators, permuted
from gan_dist.wiring.own_config import resolve_settings

RGB = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
GRAY = RGB[:, :, 0]


class Items(Dataset):  # type: ignore[type-arg]
    """A list of items, or of functions that make them, as a data set with some attributes."""

    def __init__(self, items: list[Any], **attributes: Any) -> None:
        self.items, self.taken = items, 0
        vars(self).update(attributes)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        self.taken += 1
        item = self.items[index]
        return item() if callable(item) else item


class Noise(Dataset):  # type: ignore[type-arg]
    """40 images of 8x8 pixels in two classes, with a transform that torchvision would apply in the same way."""

    def __init__(self, transform: Callable[[Tensor], Tensor] | None = None, seed: int = 0, classes: str = "ab") -> None:
        self.images = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (40, 1, 8, 8), dtype=np.uint8))
        self.targets, self.transform, self.classes = [i % 2 for i in range(40)], transform, list(classes)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index]
        return image if self.transform is None else self.transform(image), self.targets[index]


def drawn_anew(image: Tensor) -> Tensor:
    """A random transform that draws from each of the three global generators."""
    scale = 0.4 + 0.2 * torch.rand(()).item() + 0.2 * np.random.rand() + 0.2 * random.random()
    return image.float() / 255 * scale


def inverted(image: Tensor) -> Tensor:
    return 255 - image


def load(dataset: Any, **source: Any) -> tuple[GivenImages, DataInfo]:
    asked = Source(name="python", dataset=dataset, **source)
    info = describe(asked)
    images = load_dataset(asked, info)
    assert isinstance(images, GivenImages)
    return images, info


# --- items ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pixels", "mode"), [(RGB, "RGB"), (GRAY, "L")])
def test_every_form_of_an_image_gives_the_same_pixels(pixels: np.ndarray, mode: str) -> None:
    whole = pixels if pixels.ndim == 3 else pixels[:, :, None]  # (H, W, C)
    tensor = torch.from_numpy(whole).permute(2, 0, 1)
    forms: list[Any] = [
        Image.fromarray(pixels, mode),
        *(whole, whole.transpose(2, 0, 1), whole[:, ::-1][:, ::-1], whole.astype(np.float64) / 255),
        *(tensor, tensor.permute(1, 2, 0), tensor.float() / 255, tensor.double() / 255, (tensor / 255).half()),
        *([pixels, torch.from_numpy(pixels)] if pixels.ndim == 2 else []),
    ]
    pairs = [(image, label) for image in forms for label in (1, np.int64(1), torch.tensor(1), torch.tensor([1]))]
    for items in (forms, [[image] for image in forms], pairs):
        images, info = load(Items(items))
        found, labels = images.__getitems__(list(range(len(images))))
        assert info.image_shape == tensor.shape
        assert (found == tensor).all()
        assert (labels == int(items is pairs)).all()


def test_where_both_first_and_last_dimension_could_be_channels() -> None:
    """As in torchvision, the first one counts in a tensor, and the last one in an array."""
    thin = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    images, _ = load(Items([thin, torch.from_numpy(thin)]), image_size=(4, 5), channels=3)
    assert (images[0][0] == torch.from_numpy(thin).permute(2, 0, 1)).all()
    assert load(Items([torch.from_numpy(thin)]))[1].image_shape == (4, 5, 3)


def test_other_sizes_and_channels_are_fitted_as_those_of_files() -> None:
    wide = Image.fromarray(np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    items = [wide, np.asarray(wide), RGB, GRAY, wide.convert("RGBA"), Image.fromarray(GRAY)]
    expected = [wide, wide, Image.fromarray(RGB), Image.fromarray(GRAY), wide.convert("RGBA"), Image.fromarray(GRAY)]
    for source, shape in (({}, (3, 20, 30)), ({"image_size": (8, 6), "channels": 1}, (1, 8, 6))):
        images, info = load(Items(items), **source)
        assert info.image_shape == shape
        assert (images.readable(range(6))[1] == torch.stack([to_tensor(image, shape) for image in expected])).all()
    turned, exif = Image.fromarray(np.asarray(wide)), Image.Exif()
    exif[0x0112] = 6  # to be turned by a right angle
    turned.info["exif"] = exif.tobytes()
    assert load(Items([turned]))[1].image_shape == (3, 30, 20)


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (torch.rand(3, 8, 8) * 2 - 1, "floats from -0.9"),
        (torch.rand(3, 8, 8) * 255, "return floats from 0 to 1, as torchvision's ToTensor does and without Normalize"),
        (torch.full((1, 8, 8), torch.nan), "floats from nan to nan"),
        (RGB.astype(np.int64), "numbers of type int64; return uint8"),
        (torch.ones(1, 8, 8, dtype=torch.bool), "numbers of type bool"),
        (torch.zeros(2, 8, 8), r"shape \(2, 8, 8\); return \(C, H, W\)"),
        (torch.zeros(4, 3, 8, 8), r"shape \(4, 3, 8, 8\)"),
        (np.zeros((8, 0, 3), np.uint8), r"shape \(8, 0, 3\)"),
        ({"image": RGB}, "its image is of type dict; return a torch tensor, a NumPy array or a PIL image"),
        ((RGB, 1, 2), r"it has 3 parts; return an image, or \(image, label\)"),
        ((RGB, 0.5), "its label is 0.5; return .* the image alone"),
        ((RGB, "cat"), "its label is 'cat'"),
        ((RGB, torch.zeros(40, dtype=torch.int64)), r"its label is Tensor of the shape \(40,\)"),
        ((RGB, -2), "its label is -2"),
        ((RGB, 10**9), "has the label 1000000000, which is no number of a class"),
        (lambda: 1 / 0, r"dataset\[0\] failed: ZeroDivisionError: division by zero"),
    ],
)
def test_other_items_are_refused_in_a_line_that_names_them(item: Any, text: str) -> None:
    with pytest.raises(UserError, match=text) as raised:
        load(Items([item]))
    assert str(raised.value).startswith("dataset[0]")
    assert "\n" not in str(raised.value)
    if not callable(item) and "label" not in text:  # also if it comes later
        images, _ = load(Items([RGB, item]))
        with pytest.raises(UserError, match=text.replace("0", ".")) as raised:
            images.fetch(torch.tensor([1]), [5], 0)
        assert str(raised.value).startswith("dataset[1]")


# --- data sets --------------------------------------------------------------------------------------------------------


class Endless(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Iterator[np.ndarray]:
        while True:
            yield RGB


class WithoutLength(Dataset):  # type: ignore[type-arg]
    def __getitem__(self, index: int) -> np.ndarray:
        return RGB


@pytest.mark.parametrize(
    ("dataset", "text"),
    [
        (Endless(), "dataset=Endless is an IterableDataset, .*; give a map-style data set"),
        (WithoutLength(), "dataset=WithoutLength has no length or no items by number"),
        (7, "dataset=int has no length"),
        ({1, 2}, "dataset=set has no length or no items by number"),
        (Items([]), "dataset=Items is empty"),
        (None, "data.name=python is a data set that is given from Python.*dataset="),
    ],
)
def test_what_is_no_map_style_data_set_is_refused(dataset: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        load(dataset)


@pytest.mark.parametrize("command", [["train"], ["plan"], ["prefetch"]])
def test_command_line_has_no_data_set(command: list[str], tmp_path: Path) -> None:
    result = run_here(tmp_path, *command, "data.name=python", "train.device=cpu")
    assert result.returncode == 2
    assert "data.name=python is a data set that is given from Python" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_settings_of_other_data_sets_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"data.stacked=true needs grayscale .*, not data.name=python"):
        load(Noise(), stacked=True)
    with pytest.raises(ConfigError, match=r"data.class_folders=true needs data.name=folder, not data.name=python"):
        load(Noise(), class_folders=True)


def test_labels_are_listed_or_read_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gan_dist")
    labels = [2, 0, 1, 2]
    items = [(RGB, label) for label in labels]
    for listed in ({"targets": labels}, {"labels": np.array(labels, np.int32)}, {"targets": torch.tensor(labels)}):
        dataset = Items(items, **listed)
        images, info = load(dataset)
        assert (dataset.taken, info.num_classes, images.labels.tolist()) == (1, 3, labels)
    assert not caplog.text
    # The labels of the items count where a list says something else, or something that is no list of labels.
    others = [{}, {"targets": [0] * 4}, {"targets": ["x"] * 4}, {"targets": [1, 2]}, {"labels": "dogs"}]
    for other in (*others, {"targets": labels, "target_transform": abs}):
        images, info = load(Items(items, **other))
        assert (info.num_classes, images.labels.tolist()) == (3, labels)
    assert caplog.text.count("taking each of the 4 items once for its label") == len(others) + 1
    assert load(Subset(Items(items), [1, 2]))[0].labels.tolist() == [0, 1]
    assert load(TensorDataset(torch.rand(4, 1, 8, 8)))[1].num_classes == 0


def test_classes_have_names_and_labels_may_be_missing(caplog: pytest.LogCaptureFixture) -> None:
    assert load(Noise(classes="abc"))[1].class_names == ("a", "b", "c")
    assert load(Noise(classes="abc"))[1].num_classes == 3
    with pytest.raises(UserError, match=r"dataset\[1\] has the label 1, but dataset.classes has 1 names"):
        load(Noise(classes="a"))
    for missing in ([-1, -1], [None, None]):
        images, info = load(Items([(RGB, label) for label in missing]))
        assert (info.num_classes, info.labels, images.fetch(torch.tensor([1]), [0], 0)[1].tolist()) == (0, None, [0])
    assert caplog.text.count("all labels of the data set are -1 or None: its images count as images without") == 2
    with pytest.raises(UserError, match=r"dataset\[1\] has no label \(-1 or None\), but dataset\[0\] has one"):
        load(Items([(RGB, 1), (RGB, None)]))
    changing = Items([(RGB, 0), (RGB, 1)], targets=[0, 0])
    with pytest.raises(UserError, match=r"dataset\[1\] has the label 1, but had 0"):
        load(changing)[0].readable([1])


# --- order and random numbers -----------------------------------------------------------------------------------------


def test_draws_depend_on_seed_and_number_alone() -> None:
    images, _ = load(Noise(drawn_anew))
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index]
    whole, labels = images.fetch(torch.arange(40), range(100, 140), seed=3)
    torch.rand(3), np.random.rand(3), random.random()
    for first in (0, 7, 25):
        part = torch.arange(first, first + 9)
        assert torch.equal(images.fetch(part, range(100 + first, 109 + first), seed=3)[0], whole[part])
    assert labels.tolist() == images.labels.tolist()
    for other in ({"numbers": range(101, 141), "seed": 3}, {"numbers": range(100, 140), "seed": 4}):
        assert (images.fetch(torch.arange(40), **other)[0] != whole).flatten(1).any(1).all()  # type: ignore[arg-type]
    torch.set_rng_state(before[0])
    images[0]
    assert torch.equal(torch.get_rng_state(), before[0])


def test_each_generator_is_seeded_and_put_back() -> None:
    def draw() -> list[float]:
        return [torch.rand(()).item(), float(np.random.rand()), random.random()]

    def keyed(seed: int, number: int) -> list[float]:
        with global_generators() as seed_all:
            seed_all(seed, Purpose.ITEM, number)
            return draw()

    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    expected = draw()
    torch.set_rng_state(states[0]), np.random.set_state(states[1]), random.setstate(states[2])
    first = keyed(0, 5)
    with pytest.raises(UserError):  # what a user's code does there may raise an error
        load(Items([RGB, lambda: 1 / 0]))[0].readable([1])
    assert draw() == expected, "training's own state is untouched"
    assert keyed(0, 5) == first
    assert all(a != b for other in (keyed(0, 6), keyed(1, 5)) for a, b in zip(first, other))


def test_growing_networks_get_smaller_images() -> None:
    images, info = load(Items([Image.fromarray(RGB)]))
    smaller = shrink(images, 4, Source(name="python"), info, Distributed("fp32", cpu=True))
    assert (smaller.readable([0])[1] == to_tensor(Image.fromarray(RGB), (3, 2, 2))).all()


def test_workers_that_are_no_forks_need_a_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multiprocessing.get_start_method", lambda: "spawn")
    images, _ = load(Noise(transform=lambda image: image))
    with pytest.raises(UserError, match=r"cannot be sent to the data workers .*lambda.*data.workers=0"):
        make_loader(images, 4, 0, 0, workers=2)
    make_loader(images, 4, 0, 0, workers=0)
    make_loader(load(Noise(drawn_anew))[0], 4, 0, 0, workers=2)


# --- the key ----------------------------------------------------------------------------------------------------------


def _key(dataset: Any) -> str:
    images, info = load(dataset)
    return data_key(images, info.num_classes)


def test_key_is_of_images_before_their_transforms() -> None:
    key = _key(Noise())
    assert key == _key(Noise(inverted)) == _key(Noise(drawn_anew)) == _key(Noise())
    assert differences(key, _key(Noise(seed=1))) == ["pixels or labels"]
    assert differences(key, _key(Subset(Noise(), range(39)))) == ["number of images", "pixels or labels"]
    other = Noise()
    other.targets[2] = 1
    assert differences(key, _key(other)) == ["pixels or labels"]
    # A data set whose code needs its transform, or has it out of sight, is taken with the same draws each time.
    for hidden in (lambda t: Subset(Noise(t), range(40)), lambda t: _Needed(t)):
        assert _key(hidden(drawn_anew)) == _key(hidden(drawn_anew)) != _key(hidden(inverted))


class _Needed(Noise):
    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        assert self.transform is not None
        return self.transform(self.images[index]), self.targets[index]


def test_data_set_may_give_its_own_key() -> None:
    keys = []
    for seed, key in ((0, "mine 1"), (1, "mine 1"), (0, "mine 2")):
        dataset = Noise(seed=seed)
        dataset.key = key  # type: ignore[attr-defined]
        keys.append(_key(dataset))
    assert keys[0] == keys[1]
    assert differences(keys[0], keys[2]) == ["pixels or labels"]


def test_reference_of_figures_is_what_the_transforms_make() -> None:
    """The key says which transforms, and random ones draw the same in each run."""
    keys = []
    for transform in (None, inverted, drawn_anew, drawn_anew):
        images, info = load(Noise(transform))
        keys.append(reference_key(images, data_key(images, info.num_classes)))
    assert keys[2] == keys[3]
    assert len(set(keys)) == 3
    images, _ = load(Noise(inverted))
    assert torch.equal(images.readable([3])[1][0], 255 - Noise().images[3])


# --- runs -------------------------------------------------------------------------------------------------------------


def train(cwd: Path, dataset: Any, *settings: str) -> bool:
    """`gan_dist.run.train` with a data set, in this process."""
    with _as_it_was(), pytest.MonkeyPatch.context() as patch, StopSignals() as signals:
        patch.chdir(cwd)
        small = ["train.batch_size=8", "train.kimg=0.032", "log.every_kimg=0.008", "data.workers=0"]
        asked = resolve_settings(None, [*TINY, *small, *settings])
        return runs.train(replace(asked, dataset=dataset), signals)


@contextmanager
def refused(text: str) -> Iterator[None]:
    with pytest.raises(UserError) as raised:
        yield
    assert re.search(text, str(raised.value)), raised.value
    assert "\n" not in str(raised.value)


class PixelExtractor:
    """Four grey pixels as features, so that no classifier has to be trained."""

    name, num_features, num_logits, weights, resizing = "pixels", 4, 1, "", "2x2"

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        small = torch.nn.functional.adaptive_avg_pool2d(images.float().mean(1, keepdim=True), 2).flatten(1)
        return small, small[:, :1]


@pytest.mark.slow
def test_run_asks_for_its_data_set_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """To resume and to evaluate, but not to sample; other transforms are allowed, and other images are not."""
    monkeypatch.setitem(EXTRACTORS.own, "pixels", lambda *_: PixelExtractor())
    settings = ["run.dir=run", "metrics.extractor=pixels", "metrics.num_images=20"]
    assert train(tmp_path, Noise(drawn_anew), *settings, "train.kimg=0.016")
    assert "name: python" in (tmp_path / "run/config.yaml").read_text()
    assert "2 classes with their numbers of images: a (20), b (20)" in (tmp_path / "run/log.txt").read_text()
    assert list(tmp_path.glob("run/samples/real*"))
    goes_on = ["run.dir=run", "resume=latest"]
    with refused("data.name=python is a data set that is given from Python: to start, resume"):
        train(tmp_path, None, *goes_on)
    with refused(r"data.name: python -> digits"):
        train(tmp_path, None, *goes_on, "data.name=digits")
    with refused(r"the data set's content differs \(pixels or labels\)"):
        train(tmp_path, Noise(drawn_anew, seed=1), *goes_on)
    with refused("the classes were a, b and are b, a"):
        train(tmp_path, Noise(drawn_anew, classes="ba"), *goes_on)
    assert train(tmp_path, Noise(inverted), *goes_on)
    assert run_here(tmp_path, "sample", "run", "--n", "2", "--classes", "b").returncode == 0
    line = run_here(tmp_path, "evaluate", "run")
    assert line.returncode == 2
    assert "call train or evaluate there with dataset=" in line.stderr

    results: list[dict[str, Any]] = []
    for dataset in (Noise(inverted), Noise(inverted), Noise(drawn_anew), Noise(seed=1)):
        with _as_it_was():
            results += evaluation.evaluate(tmp_path / "run", "latest", ["train.device=cpu"], 20, dataset=dataset)
    assert results[0] == results[1]
    assert results[0]["fid_pixels"] != results[2]["fid_pixels"]
    assert results[0]["protocol"]["data"] != results[2]["protocol"]["data"]
    assert caplog.text.count("was trained on other images; its generator is measured against these") == 1


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_error_of_an_item_ends_the_run_with_a_checkpoint(workers: int, tmp_path: Path) -> None:
    broken = int(permuted(0, Purpose.ORDER, 0, torch.tensor([20]), 40))  # the image number 20 of the run

    class Broken(Noise):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            if index == broken and self.transform is not None:  # the key is of the images without it
                raise ValueError("this file\nis damaged")
            return super().__getitem__(index)

    settings = ["run.dir=run", "train.kimg=0.04", "sample.every_kimg=0", f"data.workers={workers}"]
    with refused(rf"^dataset\[{broken}\] failed: ValueError: this file is damaged$"):
        train(tmp_path, Broken(inverted), *settings)
    (checkpoint,) = (tmp_path / "run/checkpoints").iterdir()
    assert 0 < int(checkpoint.name) <= 16, "of whole batches of 8 before it"
    assert train(tmp_path, Noise(inverted), *settings, "resume=latest")


def test_error_in_a_worker_keeps_its_traceback() -> None:
    error = UserError(
        "Caught UserError in DataLoader worker process 0.\nOriginal Traceback\n  in x\nUserError: dataset[7]"
    )
    assert str(error) == "dataset[7]"
    assert "in x" in error.__notes__[0]


@pytest.mark.slow
def test_data_without_labels_and_the_name_of_a_run(tmp_path: Path) -> None:
    with refused("model.conditional=true, but data.name=python has no labels; .* or give a data set of"):
        train(tmp_path, Noise().images)
    assert not list(tmp_path.rglob("*.yaml"))
    assert train(tmp_path, Noise().images, "model.conditional=false")
    assert len(list(tmp_path.glob("runs/*-python"))) == 1


@pytest.mark.slow
def test_same_bits_with_workers_and_after_a_resume(tmp_path: Path) -> None:
    """On one process and on two, with transforms that draw from all three generators; both give the same weights."""
    weights = {}
    for world_size in (1, 2):
        folder = tmp_path / str(world_size)
        folder.mkdir()
        for process in start_ranks(world_size, [str(ROOT / "tests/python_data_worker.py"), str(folder)], folder):
            _, error = process.communicate(timeout=600)
            assert process.returncode == 0, error
        results = json.loads((folder / "results.json").read_text())
        assert results == {"differ": [], "other data": results["other data"]}
        weights[world_size] = load_file(folder / "whole/checkpoints/000000000096/G.safetensors")
        if world_size == 2:
            assert "the dataset= of rank 1" in results["other data"]
            assert "the images differ from the main process's: pixels or labels" in results["other data"]
    assert distance(weights[1], weights[2]) < 1e-9


def test_batches_of_workers_are_those_of_the_process() -> None:
    """A batch that is cut in two has the images of the whole."""
    images, _ = load(Noise(drawn_anew))
    whole = next(read_batches(lambda first: make_loader(images, 8, 1, first, 0), 40, 8))
    halves = read_batches(lambda first: make_loader(images, 4, 1, first, 0), 40, 4)
    parts = [next(halves), next(halves)]
    for a, b in zip(whole, zip(*parts)):
        assert torch.equal(a, torch.cat(b))
