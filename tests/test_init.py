"""Runs that start from the weights of another run, and frozen blocks of D."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from unittest import mock

import pytest
import torch
from conftest import SMALL, Train, write_digits
from safetensors.torch import load_file
from torch import Tensor
from torchmetrics.image.kid import KernelInceptionDistance

from gan_dist.checkpoint.find import FILES
from gan_dist.data.datasets import describe
from gan_dist.parallel.distributed import Distributed
from gan_dist.settings.config import load_config
from gan_dist.wiring.build import WiredRun, build
from gan_dist.wiring.data import source_of

QUIET = [f"{section}.every_kimg=0" for section in ("log", "sample", "metrics")]
COMMON = [*QUIET, "tracking.wandb=disabled", "train.device=cpu", "train.batch_size=8", "model.z_dim=8"]
COMMON += ["data.name=folder", "data.class_folders=true", "data.channels=1", "data.image_size=16"]
# For each architecture: which tensors have a part for each class, the dimension of this part, and where it begins.
OF_CLASSES = {
    "mlp": {r"G\.layers\.0\.weight": (1, 8), r"D\.layers\.0\.weight": (1, 256)},
    "dcgan": {r"G\.layers\.0\.weight": (0, 8), r"D\.layers\.0\.weight": (1, 1)},
    "sngan": {r"G\..*(scale|shift)\.weight": (0, 0), r"D\.embedding\..*(original|_u)": (0, 0)},
    "pggan": {r"G\.first\.weight": (1, 8), r"D\.from_image\.\d\.weight": (1, 1)},
    "r3gan": {r"[GD]\.embedding\.weight": (0, 0)},
}


@pytest.fixture(scope="module")
def dist() -> Distributed:
    return Distributed("fp32", cpu=True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Images of the digits 0 to 4, and of 3 to 7, in folders with these names."""
    made = {name: tmp_path_factory.mktemp(name) for name in ("low", "high")}
    write_digits(made["low"], range(5), 8)
    write_digits(made["high"], range(3, 8), 8)
    return made


def _build(folder: Path, dist: Distributed, name: str, *settings: str) -> WiredRun:
    config = load_config(None, [*COMMON, f"model.name={name}", *SMALL[name], "train.kimg=1", *settings])
    folder.mkdir(exist_ok=True)
    return build(config, describe(source_of(config.data)), folder, None, dist)


def _train(run: WiredRun, iterations: int) -> None:
    for _ in range(iterations):
        run.trainer.step(run.trainer.batches)
    run.trainer.batches.close()


def _source(folder: Path, dist: Distributed, name: str, *settings: str) -> Path:
    """A run of a few iterations with a checkpoint."""
    run = _build(folder, dist, name, *settings)
    _train(run, 3)
    run.save.now(run.state)
    return folder


def _saved(run: Path, name: str) -> dict[str, Tensor]:
    return load_file(max((run / "checkpoints").iterdir()) / f"{name}.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_CLASSES)
def test_all_weights_are_taken_where_the_classes_are_the_same(
    name: str, folders: dict[str, Path], dist: Distributed, tmp_path: Path
) -> None:
    source = _source(tmp_path / "source", dist, name, f"data.root={folders['low']}", "train.seed=1")
    run = _build(tmp_path / "new", dist, name, f"data.root={folders['low']}", f"init.run={source}")
    for part in ("G", "D", "G_ema"):
        there = _saved(source, part)
        own = getattr(run.state, part).state_dict()
        assert [k for k in there if k not in ("alpha", "_extra_state") and not torch.equal(own[k], there[k])] == []
    assert run.state.nimg == 0
    assert not run.state.opt_G.state, "no moments"
    started = run.save.facts["started_from"]
    assert started["checkpoint"] == str(max((source / "checkpoints").iterdir()))
    assert started["kimg"] == 0.024
    assert started["new"] == {"G": [], "D": [], "G_ema": []}


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_CLASSES)
def test_classes_are_matched_by_their_names(
    name: str, folders: dict[str, Path], dist: Distributed, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of the classes 0 to 4 and 3 to 7, 3 and 4 are the last two there and the first two here; all else is taken."""
    source = _source(tmp_path / "source", dist, name, f"data.root={folders['low']}", "train.seed=1")
    fresh = _build(tmp_path / "fresh", dist, name, f"data.root={folders['high']}")
    caplog.set_level("INFO", logger="gan_dist")
    run = _build(tmp_path / "new", dist, name, f"data.root={folders['high']}", f"init.run={source}")
    matched = set()
    for part in ("G", "D"):
        there, of_fresh = _saved(source, part), getattr(fresh.state, part).state_dict()
        for key, own in getattr(run.state, part).state_dict().items():
            if key in ("alpha", "_extra_state"):
                continue
            found = [pattern for pattern in OF_CLASSES[name] if re.fullmatch(pattern, f"{part}.{key}")]
            if not found:
                assert torch.equal(own, there[key]), key
                continue
            matched.update(found)
            dim, start = OF_CLASSES[name][found[0]]
            own, other, new = (t.movedim(dim, 0) for t in (own, there[key], of_fresh[key]))
            assert len(own) == start + 5
            assert torch.equal(own[:start], other[:start])
            assert torch.equal(own[start : start + 2], other[start + 3 :]), "3 and 4"
            assert torch.equal(own[start + 2 :], new[start + 2 :]), "5, 6 and 7"
    assert matched == OF_CLASSES[name].keys()
    assert caplog.text.count("of the classes 5, 6, 7") >= 2


def test_sizes_that_do_not_fit_are_new_and_named(
    folders: dict[str, Path], dist: Distributed, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Images of another size, and without labels: the first and the last layers differ."""
    low = f"data.root={folders['low']}"
    source = _source(tmp_path / "source", dist, "mlp", low, "train.seed=1")
    caplog.set_level("INFO", logger="gan_dist")
    other = ["data.image_size=8", "model.conditional=false"]
    run = _build(tmp_path / "new", dist, "mlp", low, *other, f"init.run={source}", "init.networks=[D]")
    fresh = _build(tmp_path / "fresh", dist, "mlp", low, *other)
    there, own, new = _saved(source, "D"), run.state.D.state_dict(), fresh.state.D.state_dict()
    assert torch.equal(own["layers.0.weight"], new["layers.0.weight"])
    assert torch.equal(own["layers.2.weight"], there["layers.2.weight"])
    assert "all but layers.0.weight (32x64, there 32x261)" in caplog.text
    for part in ("G", "G_ema"):
        assert all(torch.equal(a, b) for a, b in zip(getattr(run.state, part).parameters(), fresh.state.G.parameters()))


def test_average_is_g_where_it_is_not_taken(folders: dict[str, Path], dist: Distributed, tmp_path: Path) -> None:
    low = f"data.root={folders['low']}"
    source = _source(tmp_path / "source", dist, "mlp", low, "train.seed=1")
    run = _build(tmp_path / "new", dist, "mlp", low, f"init.run={source}:000000000024", "init.networks=[G]")
    there = _saved(source, "G")
    for part in ("G", "G_ema"):
        assert all(torch.equal(t, there[k]) for k, t in getattr(run.state, part).state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("mlp", 1), ("dcgan", 2), ("sngan", 1), ("r3gan", 1)])
def test_frozen_blocks_keep_their_bits(
    name: str, count: int, folders: dict[str, Path], dist: Distributed, tmp_path: Path
) -> None:
    """Weights, running means and singular vectors; and the optimizer does not know them."""
    low = f"data.root={folders['low']}"
    source = _source(tmp_path / "source", dist, name, low, "train.seed=1")
    run = _build(tmp_path / "new", dist, name, low, f"init.run={source}", f"init.freeze_D={count}", "loss.r1_gamma=1")
    before = {k: t.clone() for k, t in run.state.D.state_dict().items()}
    frozen = [k for k, p in run.state.D.named_parameters() if not p.requires_grad]
    assert frozen
    groups = run.state.opt_D.param_groups
    assert len(groups[0]["params"]) == len(list(run.state.D.parameters())) - len(frozen)
    _train(run, 3)
    blocks = {key.rpartition(".")[0] for key in frozen}
    kept = [k for k in before if any(k.startswith(f"{block}.") for block in blocks)]
    assert len(kept) >= len(frozen)
    after = run.state.D.state_dict()
    assert [k for k in kept if not torch.equal(after[k], before[k])] == []
    trained = [k for k, _ in run.state.D.named_parameters() if k not in frozen]
    assert not any(torch.equal(after[k], before[k]) for k in trained if "bias" not in k and "basis" not in k)


def test_frozen_run_resumes_exactly_and_needs_its_source_no_more(
    train: Train, folders: dict[str, Path], tmp_path: Path
) -> None:
    """The same command again, as a requeued job types it, goes on with the run, and the source may be gone."""
    root = ["data.name=folder", f"data.root={folders['low']}", "data.class_folders=true", "data.channels=1"]
    common = [*root, "data.image_size=8", "sample.every_kimg=0", "checkpoint.every_kimg=1", "train.batch_size=8"]
    assert train(*common, "run.dir=source", "train.kimg=0.08").returncode == 0
    init = [*common, "init.run=source", "init.freeze_D=1", "resume=auto", "train.seed=1"]
    assert train(*init, "run.dir=whole", "train.kimg=0.16").returncode == 0
    assert train(*init, "run.dir=parts", "train.kimg=0.08").returncode == 0
    shutil.rmtree(tmp_path / "source")
    result = train(*init, "run.dir=parts", "train.kimg=0.16")
    assert result.returncode == 0, result.stderr
    whole, parts = (tmp_path / f"{name}/checkpoints/000000000160" for name in ("whole", "parts"))
    names = [name for name in FILES if name != "config.yaml"]
    assert [name for name in names if (whole / name).read_bytes() != (parts / name).read_bytes()] == []
    started = json.loads((parts / "state.json").read_text())["started_from"]
    assert Path(started["checkpoint"]).name == "000000000080"
    assert "source" not in (parts / "config.yaml").read_text(), "a config names no other run"


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (["init.run=nowhere"], "nowhere: no such run directory"),
        (["init.run=nowhere:latest"], "nowhere: no such run directory"),
        (["init.run=source", "init.networks=[E]"], "init.networks: E: choose one of G, D, G_ema (nearest: G"),
        (["init.run=source:best"], "no checkpoint 'best'"),
        (["init.freeze_D=1"], "init.freeze_D=1 freezes weights of another run: set init.run=RUN"),
        (["init.run=source", "init.freeze_D=3"], "init.freeze_D=3: D of mlp has 1 blocks"),
        (["init.run=source", "model.name=dcgan", "data.image_size=16", "model.g_widths=[8,4]", "model.d_widths=[4,8]"],
         "no weight of G fits model.name=dcgan"),
        (["init.run=source", "init.freeze_D=1", "model.name=pggan", "data.image_size=16", "model.g_widths=[]",
          "model.d_widths=[]"], "init.freeze_D=1: model.name=pggan does not name the blocks of D"),
    ],
)  # fmt: skip
def test_wrong_words_get_one_line(settings: list[str], text: str, train: Train, tmp_path: Path) -> None:
    quick = ["train.kimg=0.064", "sample.every_kimg=0", "checkpoint.every_kimg=1"]
    if "source" in " ".join(settings):
        assert train("run.dir=source", *quick).returncode == 0
    result = train(*quick, *settings, "run.dir=new")
    assert result.returncode
    assert result.stderr.count("\n") == 1, result.stderr
    assert text in result.stderr
    assert not (tmp_path / "new").exists()


def test_file_cannot_name_a_run(train: Train, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("init: {run: /home/somebody/run}\n")
    result = train("own.yaml", tiny=False)
    assert result.returncode == 2
    assert "own.yaml: init.run belongs to one start of a run: name it on the command line instead" in result.stderr


def test_damaged_source_is_refused(train: Train, tmp_path: Path) -> None:
    assert train("run.dir=source", "train.kimg=0.064", "sample.every_kimg=0").returncode == 0
    checkpoint = max((tmp_path / "source/checkpoints").iterdir())
    (checkpoint / "G.safetensors").write_bytes(b"torn")
    result = train("init.run=source", "run.dir=new", "train.kimg=0.064")
    assert result.returncode
    assert "no checkpoint 'latest'" in result.stderr


@pytest.mark.slow
def test_a_related_run_is_a_better_start_than_none(dist: Distributed, tmp_path: Path) -> None:
    """Digits 0 to 4, then 5 to 9, over 5 seeds: FID 600 in at most half the images from scratch, by the median."""
    for name, classes in (("low", range(5)), ("high", range(5, 10))):
        (tmp_path / name).mkdir()
        write_digits(tmp_path / name, classes, 1000)
    common = ["data.image_size=8", "train.batch_size=64", "model.z_dim=64", "loss.r1_gamma=1", "ema.half_life_kimg=2"]
    common += ["model.g_widths=[256,512,1024]", "model.d_widths=[512,256]", "metrics.num_images=1000"]
    source = _build(tmp_path / "source", dist, "mlp", *common, f"data.root={tmp_path / 'low'}", "train.seed=100")
    _train(source, 800)
    source.save.now(source.state)
    ratios = []
    for seed in range(5):
        own = [*common, f"data.root={tmp_path / 'high'}", "metrics.every_kimg=1000", f"train.seed={seed}"]
        tuned = _build(tmp_path / f"tuned{seed}", dist, "mlp", *own, f"init.run={tmp_path / 'source'}")
        needed = _images_until(tuned, 600, 8192)
        assert needed < 8192, "it reaches this FID"
        scratch = _build(tmp_path / f"scratch{seed}", dist, "mlp", *own)
        ratios.append(needed / _images_until(scratch, 600, 2 * needed))
    assert sorted(ratios)[2] <= 0.5, ratios


def _images_until(run: WiredRun, fid: float, most: int) -> float:
    """The images seen when FID falls below a value, which is measured every 2,048 images; or `most` if it does not."""
    (measure,) = (c.evaluator for c in run.trainer.callbacks if hasattr(c, "evaluator"))
    while run.state.nimg < most:
        for _ in range(2048 // 64):
            run.trainer.step(run.trainer.batches)
        with mock.patch.object(KernelInceptionDistance, "compute", return_value=torch.zeros(2)):  # it takes long
            found = measure(run.state.G_ema)["fid_classifier"]
        if found < fid:
            break
    run.trainer.batches.close()
    return run.state.nimg
