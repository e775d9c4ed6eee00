"""How far a setting and a batch travel: the two lists of docs/architecture.md, recorded while one iteration runs."""

from __future__ import annotations

import inspect
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from conftest import ROOT, TINY
from torch import Tensor

from gan_dist.data.datasets import describe
from gan_dist.game.game import Penalties
from gan_dist.parallel.distributed import Distributed
from gan_dist.settings.config import load_config
from gan_dist.settings.schema import Loss
from gan_dist.wiring.build import WiredRun, build
from gan_dist.wiring.checks import check_parts
from gan_dist.wiring.data import source_of
from gan_dist.wiring.parts import check_names, named_parts

PACKAGE = ROOT / "gan_dist"
BATCH = 32
PAGE = (ROOT / "docs/architecture.md").read_text()


def _build(folder: Path) -> WiredRun:
    whole = [f"train.batch_size={BATCH}", "model.g_widths=[]", "model.d_widths=[]", "loss.r1_gamma=1"]
    config = load_config(None, [*TINY, *whole])
    dist, info = Distributed("fp32", cpu=True), describe(source_of(config.data))
    check_names(named_parts(config))
    check_parts(config, info, dist)
    return build(config, info, folder, None, dist)


def _listed(heading: str) -> list[str]:
    """The files that the page names in the list below a line."""
    lines = PAGE.split(heading)[1].lstrip("\n").splitlines()
    return [line.split("`")[1] for line in itertools.takewhile(lambda line: line.startswith("- "), lines)]


def test_few_files_read_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`loss.r1_gamma` is read where it is checked and wired, and where it is used, as a field of `Penalties`."""
    readers: set[str] = set()

    def watch(cls: type) -> None:
        def read(self: Any, name: str) -> Any:
            if name == "r1_gamma":
                file = Path(inspect.currentframe().f_back.f_code.co_filename)  # type: ignore[union-attr]
                if file.is_relative_to(PACKAGE):
                    readers.add(str(file.relative_to(PACKAGE)))
            return object.__getattribute__(self, name)

        monkeypatch.setattr(cls, "__getattribute__", read)

    watch(Loss)
    watch(Penalties)
    run = _build(tmp_path)
    run.trainer.step(run.trainer.batches)
    outside = sorted(file for file in readers if not file.startswith("settings/"))
    assert outside == sorted(_listed("`loss.r1_gamma` is read in"))
    assert len(outside) <= 3


def _files_entered(work: Callable[[], Tensor], last: str) -> list[str]:
    """Files whose functions get a tensor of the batch's size as an argument, until the file `last` is entered."""
    entered: list[str] = []

    def hook(frame: FrameType, event: str, _: Any) -> None:
        file = Path(frame.f_code.co_filename)
        if event != "call" or not file.is_relative_to(PACKAGE) or last in entered:
            return
        values = list(frame.f_locals.values())
        values += [x for value in values if isinstance(value, tuple) for x in value]
        sizes = {x.shape[0] for x in values if isinstance(x, Tensor) and x.ndim}
        name = str(file.relative_to(PACKAGE))
        if name not in entered and sizes & {BATCH, 2 * BATCH}:
            entered.append(name)

    sys.setprofile(hook)
    try:
        work()
    finally:
        sys.setprofile(None)
    return entered


def test_a_batch_enters_few_files(tmp_path: Path) -> None:
    """Between the loader and the loss, in a D step of an MLP."""
    run = _build(tmp_path)
    images, labels = next(run.trainer.batches)
    entered = _files_entered(lambda: run.trainer.step.d_step(images, labels), "game/losses.py")
    between = [file for file in entered if file not in ("game/losses.py", "rng.py")]
    assert between == _listed("enters these files between the loader and the loss")
    assert len(between) <= 8
