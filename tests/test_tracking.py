"""Weights & Biases by the real library, offline: what a run leaves is read back."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb
import yaml
from conftest import Train
from wandb.proto.wandb_internal_pb2 import Record

from gan_dist.report.tracking import LocalTracker, Trackers
from gan_dist.report.wandb_tracker import WandbTracker

pytestmark = pytest.mark.slow
SETTINGS = ["run.dir=run", "tracking.wandb=auto", "metrics.every_kimg=4", "metrics.num_images=100"]


@pytest.fixture(autouse=True)
def _end_of_the_program() -> Iterator[None]:
    yield
    wandb.teardown()


def _records(path: Path) -> Iterator[Record]:
    """The records of a `.wandb` file: LevelDB's log format in blocks of 32 KiB, after a header of 7 bytes.

    W&B's service may still write to it when `finish` has returned. It has written everything when the program ends.
    """
    wandb.teardown()
    data = path.read_bytes()
    position, parts = 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, position)
        parts += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def _history(run: Path) -> list[dict]:
    rows = []
    for file in sorted((run / "wandb").glob("offline-run-*/run-*.wandb")):
        for record in _records(file):
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                rows.append({"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items})
    return rows


def test_lines_beyond_a_checkpoint_are_written_again(tmp_path: Path) -> None:
    """Values that are not finite are null, as JSON has no others; a line that a crash has cut is left out."""
    tracker = LocalTracker(tmp_path, 0)
    for nimg in (1000, 2000, 3000):
        tracker.scalars(nimg, {"loss_D": math.nan, "loss_G": nimg / 1000})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kimg": 4.0, "loss')
    LocalTracker(tmp_path, 2000).scalars(2500, {"loss_D": 1.0})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text
    lines = [json.loads(line) for line in text.splitlines()]
    assert lines == [
        {"kimg": 1.0, "loss_D": None, "loss_G": 1.0},
        {"kimg": 2.0, "loss_D": None, "loss_G": 2.0},
        {"kimg": 2.5, "loss_D": 1.0},
    ]


def test_full_disk_costs_a_value_and_no_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The other trackers still get it."""
    full, other = LocalTracker(tmp_path, 0), LocalTracker(tmp_path, 0)
    full.metrics = tmp_path / "nowhere" / "metrics.jsonl"
    Trackers([full, other]).scalars(1000, {"loss_D": 1.0})
    assert "could not record: " in caplog.text
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"kimg": 1.0, "loss_D": 1.0}


def test_offline_run_has_losses_fid_grids_and_config(train: Train, tmp_path: Path) -> None:
    result = train(*SETTINGS)
    assert result.returncode == 0, result.stderr
    assert "W&B is offline; to sync: wandb sync run/wandb/offline-run-*" in result.stdout
    rows = _history(tmp_path / "run")
    losses = {row["kimg"]: row["loss_D"] for row in rows if "loss_D" in row}
    local = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert losses == {line["kimg"]: line["loss_D"] for line in local if "loss_D" in line}
    fids = {row["kimg"]: row["fid_classifier"] for row in rows if "fid_classifier" in row}
    assert fids == {line["kimg"]: line["fid_classifier"] for line in local if "fid_classifier" in line}
    assert [row["kimg"] for row in rows if "grid/path" in row] == [0, 2.016, 4]
    assert len([row for row in rows if "real/path" in row]) == 1
    images = list((tmp_path / "run/wandb").glob("offline-run-*/files/media/images/*.png"))
    assert len(images) == 4
    (file,) = (tmp_path / "run/wandb").glob("offline-run-*/run-*.wandb")
    config = {
        item.key: json.loads(item.value_json)
        for record in _records(file)
        if record.WhichOneof("record_type") == "run"
        for item in record.run.config.update
    }
    assert config["train"]["batch_size"] == 32
    assert config["data"] == yaml.safe_load((tmp_path / "run/config.yaml").read_text())["data"]


def test_final_model_is_an_artifact_if_asked(train: Train, tmp_path: Path) -> None:
    assert train(*SETTINGS, "metrics.every_kimg=0", "tracking.artifact=true").returncode == 0
    (file,) = (tmp_path / "run/wandb").glob("offline-run-*/run-*.wandb")
    requests = [record.request for record in _records(file) if record.WhichOneof("record_type") == "request"]
    artifacts = [record.artifact for record in _records(file) if record.WhichOneof("record_type") == "artifact"]
    artifacts += [r.log_artifact.artifact for r in requests if r.WhichOneof("request_type") == "log_artifact"]
    (artifact,) = artifacts
    assert artifact.type == "model"
    assert {"G_ema.safetensors", "config.yaml"} <= {entry.path for entry in artifact.manifest.contents}
    refused = train("run.dir=other", "tracking.artifact=true", "checkpoint.every_kimg=0")
    assert refused.returncode == 2
    assert "checkpoint.every_kimg" in refused.stderr


def test_resumed_run_goes_on_in_the_same_wandb_run(train: Train, tmp_path: Path) -> None:
    assert train(*SETTINGS, "metrics.every_kimg=0").returncode == 0
    assert train(*SETTINGS, "metrics.every_kimg=0", "resume=latest", "train.kimg=6").returncode == 0
    files = sorted((tmp_path / "run/wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2
    assert files[0].name == files[1].name, "one id"
    assert (tmp_path / "run/wandb_id.txt").read_text().split()[0] in files[0].name
    assert [row["kimg"] for row in _history(tmp_path / "run") if "loss_D" in row] == pytest.approx(
        [1.024, 2.016, 3.008, 4.0, 5.024, 6.016]
    )


def test_stopped_run_is_marked_as_preempting(tmp_path: Path) -> None:
    for outcome in ("stopped", "finished"):
        folder = tmp_path / outcome
        folder.mkdir()
        tracker = WandbTracker(folder, "offline", "gan_dist", "", "run", {})
        tracker.scalars(32, {"loss_D": 1.0})
        tracker.finish(outcome)
        (file,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
        kinds = {record.WhichOneof("record_type") for record in _records(file)}
        assert "history" in kinds
        assert ("preempting" in kinds) == (outcome == "stopped")


def test_disabled_leaves_no_trace(train: Train, tmp_path: Path) -> None:
    assert train("run.dir=setting", "tracking.wandb=disabled", "train.kimg=0.1").returncode == 0
    disabled = {"WANDB_MODE": "disabled"}
    assert train("run.dir=variable", "tracking.wandb=auto", "train.kimg=0.1", env=disabled).returncode == 0
    assert not list(tmp_path.glob("*/wandb*"))


def test_broken_wandb_costs_a_line_not_the_run(train_process: Train, tmp_path: Path) -> None:
    """Another package called wandb, which raises at once, comes first on the path."""
    (tmp_path / "wandb.py").write_text("raise RuntimeError('the service is down')\n")
    result = train_process(*SETTINGS, env={"PYTHONPATH": str(tmp_path)})
    assert result.returncode == 0, result.stderr
    assert "W&B tracking ended (RuntimeError: the service is down); training goes on" in result.stdout
    assert (tmp_path / "run/checkpoints/000000004000").is_dir()


def test_unreachable_wandb_does_not_hold_training(train: Train, tmp_path: Path) -> None:
    env = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    result = train(*SETTINGS, "metrics.every_kimg=0", env=env)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run/checkpoints/000000004000").is_dir()
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 4
    assert "W&B can't be reached" in result.stdout
    assert len([row for row in _history(tmp_path / "run") if "loss_D" in row]) == 4, "kept offline instead"
