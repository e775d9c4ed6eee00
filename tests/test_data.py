"""Tests of the data: all image formats, broken files, and the stream of batches as a function of images seen."""

from __future__ import annotations

import gzip
import struct
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from multiprocessing.sharedctypes import RawValue
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from PIL import Image
from torch import Tensor

from gan_dist import rng
from gan_dist.data import DataInfo, Source
from gan_dist.data.budget import Budget
from gan_dist.data.datasets import describe, load_dataset
from gan_dist.data.files import FileList
from gan_dist.data.folder import ImageFiles
from gan_dist.data.images import BrokenImage, read_image
from gan_dist.data.in_memory import ImageTensor, decode_all
from gan_dist.data.listing import list_images
from gan_dist.data.loader import GlobalBatches, KeyedStream, make_loader, read_batches
from gan_dist.data.preprocess import images_to_float, to_uint8
from gan_dist.data.shared import shrink
from gan_dist.data.workers import Workers
from gan_dist.engine.draws import Draws
from gan_dist.engine.scalars import Scalars
from gan_dist.errors import UserError
from gan_dist.parallel.distributed import Distributed
from gan_dist.rng import BLOCK, Purpose, permuted
from gan_dist.settings.config import load_config
from gan_dist.settings.schema import Data
from gan_dist.wiring.data import class_probabilities, source_of
from gan_dist.wiring.networks import make_state

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def _halves(left: tuple[int, int, int], right: tuple[int, int, int]) -> Image.Image:
    image = Image.new("RGB", (8, 8), left)
    image.paste(right, (4, 0, 8, 8))
    return image


def _corners(path: Path, channels: int = 3) -> list[tuple[int, ...]]:
    """Colours of the top left and the bottom right pixel, as read."""
    x = read_image(path, (channels, 8, 8)).pixels
    assert x.shape == (channels, 8, 8)
    assert x.dtype == torch.uint8
    return [tuple(x[:, 0, 0].tolist()), tuple(x[:, -1, -1].tolist())]


def test_rgb_gray_palette_and_bilevel(tmp_path: Path) -> None:
    image = _halves(RED, WHITE)
    image.save(tmp_path / "rgb.png")
    image.convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "palette.png")
    image.convert("L").save(tmp_path / "gray.png")
    _halves((0, 0, 0), WHITE).convert("1").save(tmp_path / "bilevel.png")
    assert _corners(tmp_path / "rgb.png") == [RED, WHITE]
    assert _corners(tmp_path / "palette.png") == [RED, WHITE]
    assert _corners(tmp_path / "gray.png") == [(76, 76, 76), WHITE]  # 0.299 R, ITU-R 601
    assert _corners(tmp_path / "gray.png", 1) == [(76,), (255,)]
    assert _corners(tmp_path / "bilevel.png") == [(0, 0, 0), WHITE]


def test_transparency_is_laid_on_white_unless_kept(tmp_path: Path) -> None:
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))  # red that nobody sees
    image.paste((0, 0, 255, 255), (4, 0, 8, 8))
    image.save(tmp_path / "rgba.png")
    assert _corners(tmp_path / "rgba.png") == [WHITE, BLUE]
    assert _corners(tmp_path / "rgba.png", 4) == [(255, 0, 0, 0), (0, 0, 255, 255)]
    palette = _halves(RED, BLUE).convert("P", palette=Image.Palette.ADAPTIVE)
    palette.save(tmp_path / "palette.png", transparency=palette.getpixel((0, 0)))
    assert _corners(tmp_path / "palette.png") == [WHITE, BLUE]
    Image.new("LA", (8, 8), (0, 0)).save(tmp_path / "la.png")
    assert _corners(tmp_path / "la.png") == [WHITE, WHITE]


def test_cmyk_sixteen_bit_and_float(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.tiff")
    assert _corners(tmp_path / "cmyk.tiff") == [RED, RED]
    gray = np.full((8, 8), 65535, np.uint16)
    gray[:, :4] = 257 * 100
    Image.fromarray(gray).save(tmp_path / "sixteen.png")
    assert _corners(tmp_path / "sixteen.png", 1) == [(100,), (255,)]
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(tmp_path / "float.tiff")
    assert _corners(tmp_path / "float.tiff", 1) == [(128,), (128,)]


def test_exif_orientation_is_followed(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    _halves(RED, BLUE).save(tmp_path / "turned.png", exif=exif)
    assert _corners(tmp_path / "turned.png") == [BLUE, RED]


def test_other_sizes_are_cropped_in_the_middle_and_resized(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 8), GREEN)
    image.paste(RED, (0, 0, 10, 8))
    image.paste(RED, (30, 0, 40, 8))
    image.save(tmp_path / "wide.png")
    x = read_image(tmp_path / "wide.png", (3, 4, 4)).pixels
    assert (x == torch.tensor(GREEN)[:, None, None]).all()
    assert read_image(tmp_path / "wide.png", (3, 6, 9)).pixels.shape == (3, 6, 9)


def _huge_png() -> bytes:
    """A PNG of some bytes that claims 100,000 x 100,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def _broken_files(folder: Path) -> dict[str, bytes]:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "whole.png")
    whole = (folder / "whole.png").read_bytes()
    (folder / "whole.png").unlink()
    return {"empty.png": b"", "text.jpg": b"hello", "cut.png": whole[: len(whole) // 2], "huge.png": _huge_png()}


def test_file_that_another_program_would_have_to_read_is_none(tmp_path: Path) -> None:
    """Pillow would start Ghostscript for PostScript, whatever the name."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", "EPS")
    with pytest.raises(BrokenImage, match="cannot identify"):
        read_image(tmp_path / "a.png", (3, 8, 8))
    (tmp_path / "a.png").rename(tmp_path / "a.eps")
    with pytest.raises(UserError, match="no images"):
        list_images(tmp_path, class_folders=False)


def test_broken_file_is_named(tmp_path: Path) -> None:
    for name, content in _broken_files(tmp_path).items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BrokenImage, match=name):
            read_image(tmp_path / name, (3, 8, 8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, 6 good files of many kinds, 4 broken ones and a text file."""
    root = tmp_path / "images"
    for label, colour in (("blue", BLUE), ("red", RED)):
        (root / label).mkdir(parents=True)
        Image.new("RGB", (20, 30), colour).save(root / label / "a.png")
        Image.new("RGBA", (9, 9), (*colour, 255)).save(root / label / "b.webp", lossless=True)
        Image.new("L", (5, 50), 200).save(root / label / "c.bmp")
    for name, content in _broken_files(root).items():
        (root / "red" / name).write_bytes(content)
    (root / "notes.txt").write_text("not an image")
    return root


def test_folder_is_decoded_and_broken_files_keep_their_numbers(folder: Path) -> None:
    config = Data(name="folder", root=str(folder), image_size="8", class_folders=True)
    info = describe(source_of(config))
    assert (info.image_shape, info.num_classes, info.num_images) == ((3, 8, 8), 2, 10)
    dataset = load_dataset(source_of(config), info)
    assert isinstance(dataset, ImageTensor)
    assert info.class_names == ("blue", "red")
    assert dataset.labels.tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1, 1]
    assert tuple(dataset.images[0, :, 0, 0].tolist()) == BLUE
    assert tuple(dataset.images[4, :, 0, 0].tolist()) == RED
    assert info.files is not None
    assert [info.files.name(i) for i in dataset.unreadable] == [
        f"red/{name}.{ending}" for name, ending in zip(("cut", "empty", "huge", "text"), ("png", "png", "png", "jpg"))
    ]
    config.broken_files = "error"
    with pytest.raises(UserError, match=r"cut\.png"):
        load_dataset(source_of(config), info)


def test_folder_larger_than_memory_is_read_file_by_file(folder: Path) -> None:
    config = Data(name="folder", root=str(folder), image_size="8", memory_gib=1e-9)
    dataset = load_dataset(source_of(config), describe(source_of(config)))
    assert isinstance(dataset, ImageFiles)
    assert len(dataset) == 10, "the numbering stays whatever is broken"
    images, labels = dataset.__getitems__(list(range(10)))
    assert images.shape == (10, 3, 8, 8)
    assert labels.tolist() == [0] * 10
    strict = ImageFiles(folder, dataset.files, dataset.image_shape, skip_broken=False)
    with pytest.raises(UserError, match="broken_files=skip"):
        strict.__getitems__(list(range(10)))


@pytest.mark.slow
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_loader_processes_give_the_same_batches_as_memory(
    start: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("multiprocessing.get_start_method", lambda: start)  # newer versions of Python do not fork
    config = Data(name="folder", root=str(folder), image_size="8", memory_gib=1e-9)
    files = load_dataset(source_of(config), describe(source_of(config)))
    assert isinstance(files, ImageFiles)
    memory = decode_all(files)
    assert len(memory.unreadable) == 4
    streams = [
        read_batches(partial(make_loader, data, 4, 1, workers=2), start=8, batch_size=4) for data in (files, memory)
    ]
    for (a, label_a), (b, label_b) in islice(zip(*streams), 5):
        assert torch.equal(a, b)
        assert torch.equal(label_a, label_b)
    for stream in streams:
        stream.close()


@pytest.mark.slow
def test_lost_batch_ends_the_wait(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The DataLoader's thread drops a batch that it cannot send. Then all workers are idle, and none will come."""
    pass_on = Workers.pass_on

    def lose(self: Workers, batch: Any) -> Any:
        pass_on(self, batch)
        return [lambda: 0]  # it can't be pickled

    monkeypatch.setattr("gan_dist.data.waiting.LOOK", 0.02)
    monkeypatch.setattr(Workers, "pass_on", lose)
    config = Data(name="folder", root=str(folder), image_size="8", memory_gib=1e-9)
    files = load_dataset(source_of(config), describe(source_of(config)))
    batches = read_batches(lambda start: make_loader(files, 2, 0, start, workers=1), 0, 2)
    with pytest.raises(UserError, match="the data workers are idle"):
        next(batches)


def test_empty_and_missing_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no images"):
        list_images(tmp_path, class_folders=False)
    with pytest.raises(UserError, match="no such directory"):
        list_images(tmp_path / "gone", class_folders=False)
    with pytest.raises(UserError, match="no subfolders"):
        list_images(tmp_path, class_folders=True)


def _write_idx(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        header = struct.pack(f">HBB{array.ndim}i", 0, 8, array.ndim, *array.shape)
        (folder / f"train-{name}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))


@pytest.mark.parametrize("place", ["", "FashionMNIST/raw"])
def test_idx_files_are_read_where_debian_or_torchvision_put_them(place: str, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    _write_idx(tmp_path / place, images, np.arange(5, dtype=np.uint8))
    config = load_config(None, ["data.name=FashionMNIST", f"data.root={tmp_path}"]).data
    dataset = load_dataset(source_of(config), describe(source_of(config)))
    assert isinstance(dataset, ImageTensor)
    np.testing.assert_array_equal(dataset.images[:, 0].numpy(), images)
    assert dataset.labels.tolist() == [0, 1, 2, 3, 4]
    config.image_size, config.channels = "32", 3
    assert load_dataset(source_of(config), describe(source_of(config)))[0][0].shape == (3, 32, 32)


def test_damaged_idx_file_is_named(tmp_path: Path) -> None:
    _write_idx(tmp_path, np.zeros((5, 28, 28), np.uint8), np.zeros(5, np.uint8))
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:40])
    config = Data(name="MNIST", root=str(tmp_path))
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz: damaged"):
        load_dataset(source_of(config), describe(source_of(config)))


def test_layouts_of_torchvision_become_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """What can't be downloaded here: stand-ins with the attributes that torchvision documents."""
    import torchvision

    images = np.random.default_rng(0).integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)
    layouts = {
        "CIFAR10": {"data": images.transpose(0, 2, 3, 1), "targets": [3, 1, 4, 1, 5, 9]},
        "SVHN": {"data": images, "labels": np.array([3, 1, 4, 1, 5, 9])},
        "KMNIST": {"data": torch.from_numpy(images[:, 0, :28, :28]), "targets": torch.tensor([3, 1, 4, 1, 5, 9])},
        "STL10": {"data": images, "labels": np.full(6, -1)},
    }
    for name, attributes in layouts.items():
        monkeypatch.setattr(torchvision.datasets, name, lambda *_, a=attributes, **__: SimpleNamespace(**a))
        config = load_config(None, [f"data.name={name}", "data.root=nowhere", "data.image_size=28"]).data
        dataset = load_dataset(source_of(config), describe(source_of(config)))
        assert isinstance(dataset, ImageTensor)
        assert dataset.images.shape == (6, 1 if name == "KMNIST" else 3, 28, 28)
        assert dataset.labels.tolist() == ([0] * 6 if name == "STL10" else [3, 1, 4, 1, 5, 9])
    config.image_size = "32"
    stl = load_dataset(source_of(config), describe(source_of(config)))
    assert isinstance(stl, ImageTensor)
    np.testing.assert_array_equal(stl.images.numpy(), images)


def test_digits_are_scikit_learns() -> None:
    config = Data()
    dataset = load_dataset(source_of(config), describe(source_of(config)))
    assert isinstance(dataset, ImageTensor)
    assert dataset.images.shape == (1797, 1, 8, 8)
    assert int(dataset.images.max()) == 255, "gray level 16 is white"
    assert torch.bincount(dataset.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def _batches(start: int) -> Iterator[list[int]]:
    """The images of each batch of 4 from a set of 10."""
    stream = KeyedStream(ImageTensor(torch.zeros(10, 1, 1, 1), torch.zeros(10)), seed=0)
    return (stream.indices(numbers).tolist() for numbers in GlobalBatches(4, start))


def test_every_image_once_an_epoch_in_an_order_of_its_own() -> None:
    shown = [index for batch in islice(_batches(0), 5) for index in batch]
    assert shown[:10] == permuted(0, Purpose.ORDER, 0, torch.arange(10), 10).tolist()
    assert shown[10:] == permuted(0, Purpose.ORDER, 1, torch.arange(10), 10).tolist()


def test_stream_starts_anywhere() -> None:
    whole = list(islice(_batches(0), 20))
    for start in (4, 8, 12, 36):
        assert list(islice(_batches(start), 5)) == whole[start // 4 : start // 4 + 5]


@pytest.mark.slow
def test_shards_of_4096_processes_are_disjoint_and_complete() -> None:
    """As Accelerate cuts the global batches; each of two epochs, the second of which begins within a batch."""
    n, batch_size, processes = 12_288, 8192, 4096
    stream = KeyedStream(ImageTensor(torch.zeros(n, 1, 1, 1), torch.zeros(n)), seed=0)
    shards = [
        list(islice(BatchSamplerShard(GlobalBatches(batch_size, 0), processes, rank, split_batches=True), 3))
        for rank in range(processes)
    ]
    shown = torch.cat([stream.indices(shard[i]) for i in range(3) for shard in shards]).numpy()  # the order of the run
    assert len(shown) == 2 * n
    for epoch in (shown[:n], shown[n:]):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(n))


def test_start_of_a_process_costs_its_share_and_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a thousand million images and 4096 processes, one looks up no more than about a block around its own 8."""
    looked_up = 0

    def counting(x: torch.Tensor) -> torch.Tensor:
        nonlocal looked_up
        looked_up += x.numel()
        return mix(x)

    mix = rng._mix
    monkeypatch.setattr(rng, "_mix", counting)
    stream = KeyedStream(range(10**9), seed=0)  # type: ignore[arg-type]
    shard = BatchSamplerShard(GlobalBatches(8 * 4096, start=5 * 10**9), 4096, 4095, split_batches=True)
    indices = stream.indices(next(iter(shard)))
    assert len(set(indices.tolist())) == 8
    assert looked_up <= 4 * (8 + BLOCK) * rng.ROUNDS


def test_stand_ins_are_drawn_evenly_and_by_number_alone() -> None:
    """A hundred good images, each behind a broken one: no neighbour is preferred, and nothing depends on batches."""
    n = 200
    images = torch.arange(n, dtype=torch.uint8)[:, None, None, None]
    dataset = ImageTensor(images, torch.arange(n), unreadable=range(0, n, 2))
    stream = KeyedStream(dataset, seed=3)
    shown, labels = stream.__getitems__(range(20 * n))
    assert torch.equal(shown.flatten().long(), labels), "a stand-in has its own label"
    counts = torch.bincount(labels, minlength=n)
    assert counts[::2].sum() == 0
    assert counts.max() < 75, "40 on average; 5 standard deviations of the 20 that are drawn"
    assert counts[1::2].min() >= 20, "each good image is shown once in each epoch"
    parts = [stream.__getitems__(range(first, first + 50))[1] for first in range(0, 20 * n, 50)]
    assert torch.equal(torch.cat(parts), labels)


def test_threads_share_a_budget() -> None:
    budget, active, most = Budget(10), 0, 0

    def work(amount: int) -> None:
        nonlocal active, most
        with budget.of(amount):
            active += min(amount, 10)
            most = max(most, active)
            threading.Event().wait(0.001)
            active -= min(amount, 10)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [3, 6, 20, 1] * 10))
    assert (most, active) == (10, 0), "a request for more than the budget waits for all of it"


def test_files_get_the_order_of_the_classes_of_a_run() -> None:
    files = FileList.of([("1/a.png", 0, 5), ("1/b.png", 0, 6), ("2/a.png", 1, 7), ("10/ö.png", 2, 8)])
    ordered = files.in_order(np.array([0, 2, 1]))  # as text: 1, 10, 2
    names = [ordered.name(i) for i in range(4)]
    assert names == ["1/a.png", "1/b.png", "10/ö.png", "2/a.png"]
    assert ordered.labels.tolist() == [0, 0, 1, 2]
    assert ordered.sizes.tolist() == [5, 6, 8, 7]


def test_preprocess_and_its_inverse() -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8)
    x = images_to_float(images)
    assert (x.min().item(), x.max().item()) == (-1.0, 1.0)
    assert torch.equal(to_uint8(x), images)
    beyond = torch.tensor([-1.5, -1.002, 1.002, 1.5])
    assert to_uint8(beyond).tolist() == [0, 0, 255, 255], "clamped, never wrapped around"


ROW = Scalars(torch.device("cpu"), {"row": torch.int64})


def test_flips_depend_on_the_number_of_the_image_alone() -> None:
    images = torch.randint(0, 256, (1000, 1, 4, 4), dtype=torch.uint8)
    state = make_state(load_config(None), DataInfo((1, 4, 4), 10, 1000), Distributed("fp32", cpu=True))
    draws = Draws(state, 0, None, images_to_float, True, [], ROW)

    def seen(images: Tensor, first: int) -> Tensor:
        draws.scalars.write({"row": draws.begin(first, len(images))})
        return draws.real_images(images)

    whole = seen(images, 50)
    assert torch.equal(torch.cat([seen(images[:300], 50), seen(images[300:], 350)]), whole)
    plain = images_to_float(images)
    flipped = (whole == plain.flip(3)).flatten(1).all(1)
    kept = (whole == plain).flatten(1).all(1)
    assert (flipped | kept).all()
    assert 420 < flipped.sum() < 580  # 5 standard deviations


def test_smaller_images_of_a_stage_are_made_once_if_they_fit(tmp_path: Path) -> None:
    """A set that is too large for memory, but not its halves."""
    for i in range(4):
        Image.new("RGB", (16, 16), (60 * i, 0, 0)).save(tmp_path / f"{i}.png")
    files, _ = list_images(tmp_path, False)
    dataset, dist = ImageFiles(tmp_path, files, (3, 16, 16), skip_broken=True), Distributed(cpu=True)
    info, gib = DataInfo((3, 16, 16), 0, 4), 4 * 3 * 8 * 8 / 2**30
    halves = shrink(dataset, 2, Source(memory=gib * 2**30), info, dist)
    assert isinstance(halves, ImageTensor)
    assert halves.images[:, 0, 0, 0].tolist() == [0, 60, 120, 180]
    assert halves.images.shape == (4, 3, 8, 8)
    assert isinstance(shrink(dataset, 2, Source(memory=gib * 2**29), info, dist), ImageFiles)
    quarters = shrink(halves, 2, Source(), info, dist)
    assert isinstance(quarters, ImageTensor)
    assert quarters.images.shape == (4, 3, 4, 4)


def test_labels_are_asked_for_as_often_as_they_occur() -> None:
    dataset = ImageTensor(torch.zeros(8, 1, 1, 1), torch.tensor([0, 2, 2, 2, 0, 2, 2, 2]))
    info, config = DataInfo((1, 1, 1), 4, 8), load_config(None)
    probabilities = class_probabilities(dataset, info, config)
    assert probabilities is not None
    assert probabilities.tolist() == [0.25, 0, 0.75, 0]
    state = make_state(config, info, Distributed("fp32", cpu=True))
    draws = Draws(state, 0, probabilities, images_to_float, False, [], ROW)
    draws.scalars.write({"row": draws.begin(0, 1000)})
    drawn = draws.for_G(slice(0, 1000), None).y
    assert drawn is not None
    assert 185 < int((drawn == 0).sum()) < 315  # 5 standard deviations
    assert set(drawn.tolist()) == {0, 2}
    config.model.conditional = False
    assert class_probabilities(dataset, info, config) is None


def _look(event: Any, looks: Any) -> None:
    while True:
        event.is_set()
        looks.value = 1


@pytest.mark.slow
def test_a_worker_that_is_killed_stops_nobody() -> None:
    """A worker looks again and again if it is to end. It may be killed at that moment, and the DataLoader goes on."""
    context = Workers(1).context()
    assert context
    for _ in range(10):
        event, looks = context.Event(), RawValue("b", 0)
        worker = context.Process(target=_look, args=(event, looks), daemon=True)  # type: ignore[attr-defined]
        worker.start()
        while not looks.value:
            pass
        worker.kill()
        worker.join()
        told = threading.Thread(target=event.set, daemon=True)
        told.start()
        told.join(10)
        assert not told.is_alive()
        assert event.is_set()
