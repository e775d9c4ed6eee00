"""The recipe `folder`: one's own pictures, with a batch that is chosen for them, and without the internet."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, Train, start_ranks
from PIL import Image

import gan_dist
from gan_dist.cli import main
from gan_dist.data.datasets import describe
from gan_dist.parallel.distributed import Distributed
from gan_dist.planning.count import count_iteration
from gan_dist.planning.settle import LARGEST, OPERATIONS, OVERHEAD, SMALLEST, choose_batches, settle
from gan_dist.settings.config import load_config
from gan_dist.wiring.data import source_of

# Widths for the maps of 4, 8, 16 and 32 pixels, or of 6 to 96 pixels.
WIDTHS = {32: "8,8,8,8", 96: "8,8,8,8,8"}


def _small(size: int) -> list[str]:
    networks = [f"model.{side}_widths=[{WIDTHS[size]}]" for side in "gd"]
    networks += [f"model.{side}_args={{blocks: 1, group_size: 4}}" for side in "gd"]
    rest = ["tracking.wandb=disabled", "train.device=cpu", "train.kimg=0.032"]
    return ["folder", "data.root=pictures", f"data.image_size={size}", *networks, *rest]


def _settings(run_dir: Path) -> list[str]:
    """The lines of a run's `config.yaml` about the batch and the metrics."""
    lines = (run_dir / "config.yaml").read_text().splitlines()
    return [line.strip() for line in lines if "batch_size: " in line or "every_kimg: " in line]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """24 pictures of several sizes, modes and formats, and a file that is none."""
    generator = np.random.default_rng(0)
    formats = [("RGB", "jpg"), ("L", "jpg"), ("CMYK", "jpg"), ("RGBA", "png"), ("P", "png"), ("LA", "png")]
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, (mode, name) in enumerate(formats * 4):
        height, width = generator.integers(20, 120, 2)
        noise = Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)
        noise.save(folder / f"{i}.{name}")
    (folder / "broken.png").write_bytes(b"not a picture")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("size", "memory"), [(32, "4"), (96, "1e-9")], ids=["32, in memory", "96, file by file"])
def test_own_pictures_train_from_their_folder_alone(
    size: int, memory: str, pictures: Path, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def refuse(_: socket.socket, address: Any) -> None:
        asked.append(address)
        raise OSError("there is no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    own = [f"data.memory_gib={memory}", "data.workers=0", "run.dir=run"]
    result = train(*_small(size), *own, tiny=False)
    assert result.returncode == 0, result.stderr
    assert asked == []
    assert "broken.png" in result.stdout + result.stderr
    assert gan_dist.load_generator(tmp_path / "run").image_shape == (3, size, size)
    log = (tmp_path / "run/log.txt").read_text()
    for text in ("train.batch_size=16 ", "train.micro_batch_size=16 ", "no metric is measured", "gan-dist prefetch"):
        assert text in log
    assert (tmp_path / "run/samples/grid-000000.016.png").exists(), "a picture follows the first iteration"

    before = _settings(tmp_path / "run")
    assert before[:2] == ["batch_size: 16", "micro_batch_size: 16"]
    result = train("run.dir=run", "resume=latest", "train.kimg=0.064", tiny=False)
    assert result.returncode == 0, result.stderr
    assert asked == []
    assert _settings(tmp_path / "run") == before
    assert "chosen" not in result.stdout + result.stderr


@pytest.mark.slow
def test_batch_that_was_chosen_is_the_same_for_other_numbers_of_processes(
    pictures: Path, train: Train, tmp_path: Path
) -> None:
    ranks = start_ranks(2, [str(ROOT / "train.py"), *_small(32), "run.dir=run"], tmp_path)
    outputs = [rank.communicate(timeout=200) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], outputs
    before = _settings(tmp_path / "run")
    assert before[0] == "batch_size: 16"
    assert train("run.dir=run", "resume=latest", "train.kimg=0.048", tiny=False).returncode == 0
    assert _settings(tmp_path / "run") == before
    other = train("run.dir=run", "resume=latest", "train.batch_size=0", tiny=False)
    assert other.returncode == 2
    assert "train.batch_size: 16 -> 0" in other.stderr


@pytest.mark.slow
def test_broken_file_stops_a_run_that_is_told_so(pictures: Path, train: Train) -> None:
    strict = train(*_small(32), "data.broken_files=error", "data.memory_gib=1e-9", "train.kimg=1", tiny=False)
    assert strict.returncode == 1
    assert strict.stderr.strip().splitlines()[-1].startswith("gan-dist: error: ")
    assert "Traceback" not in strict.stderr


def test_batch_follows_the_work_and_the_micro_batch_the_memory() -> None:
    wide = ["model.conditional=false", "model.g_widths=[65536,65536]", "model.d_widths=[65536,65536]"]
    config = load_config(None, [*wide, "train.batch_size=0"])
    info = describe(source_of(config.data))
    batch, micro = choose_batches(config, info, on_gpu=False, free=1e15)
    work = sum(operation.flops for operation in count_iteration(config, info, batch).operations)
    assert SMALLEST < batch < LARGEST, "otherwise the limits decide"
    assert OPERATIONS["cpu"] / 2 < work <= OPERATIONS["cpu"]
    assert micro == 1, "on a CPU these networks leave no room"

    assert choose_batches(config, info, on_gpu=True, free=1e15) == (LARGEST, LARGEST)
    counted = count_iteration(config, info, 16)
    free = (counted.persistent + OVERHEAD * counted.peak) / 0.9 + 1e6
    assert choose_batches(config, info, on_gpu=True, free=free) == (LARGEST, 16), (
        "the memory says nothing about the batch"
    )
    few = replace(info, num_images=5)
    assert choose_batches(config, few, on_gpu=True, free=1e15) == (4, 4)


def test_run_is_measured_if_the_weights_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAN_DIST_CACHE", str(tmp_path))
    dist = Distributed("fp32", cpu=True)
    for there, named, measured in ((False, "", 0), (False, "mine.pth", 5), (True, "", 5)):
        if there:
            (tmp_path / "weights-inception-2015-12-05-6726825d.pth").touch()
        own = ["metrics.extractor=inception", "metrics.optional=true", "metrics.every_kimg=5"]
        config = load_config(None, [*own, f"metrics.inception_weights={named}"])
        settle(config, describe(source_of(config.data)), dist)
        assert config.metrics.every_kimg == measured


def test_cost_of_own_pictures_is_planned_with_the_batch_that_a_run_would_choose(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan", *_small(32), "--gpu", "h100"]) == 0
    assert "global batch 16, micro-batch 16" in capsys.readouterr().out
