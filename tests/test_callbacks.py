"""What happens during training beside the iterations: what is drawn and measured, and how speed is told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from gan_dist.checkpoint.state import State
from gan_dist.engine.callbacks.evaluate import Evaluate
from gan_dist.engine.callbacks.grid import SampleGrid
from gan_dist.engine.callbacks.progress import LogProgress
from gan_dist.engine.clock import Clock

MAIN: Any = SimpleNamespace(is_main=True, device=torch.device("cpu"))


class _Recorder:
    """A tracker that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, Any]] = []

    def scalars(self, nimg: int, values: dict[str, Any]) -> None:
        self.told.append((nimg, values))

    def image(self, nimg: int, name: str, picture: np.ndarray) -> None:
        self.told.append((nimg, picture))


def _state(nimg: int) -> State:
    networks: Any = {name: name for name in ("G", "D", "G_ema", "opt_G", "opt_D")}
    return State(**networks, nimg=nimg)


def test_pictures_and_figures_are_of_the_average() -> None:
    """Not of G itself, which is noisier."""
    tracker: Any = _Recorder()
    draw: Any = lambda G: G  # noqa: E731
    SampleGrid(10, 20, draw, tracker, Clock())(_state(30))
    assert tracker.told == [(30, "G_ema")]
    measured: list[Any] = []
    evaluator: Any = lambda G, check: measured.append(G) or {"fid": 3.0}  # type: ignore[func-returns-value]  # noqa: E731
    evaluator.protocol = {}
    state = _state(40)
    stop: Any = SimpleNamespace(requested=False)
    save: Any = SimpleNamespace(facts={"series": 1}, if_best=lambda state: None)
    Evaluate(10, evaluator, tracker, Clock(), MAIN, save, stop)(state)
    assert measured == ["G_ema"]
    assert (state.metrics, state.metrics_nimg, save.unmeasured) == ({"fid": 3.0}, 40, False)
    assert tracker.told[-1] == (40, {"fid": 3.0, "protocol": {}})


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that clocks show, which a test sets."""
    time = [100.0]
    monkeypatch.setattr("gan_dist.engine.clock.time", SimpleNamespace(perf_counter=lambda: time[0]))
    return time


def test_clock_leaves_out_what_is_paused(now: list[float]) -> None:
    clock = Clock()
    now[0] += 5
    with clock.paused():
        now[0] += 1000
    now[0] += 2
    assert clock.seconds() == 7
    clock.start()
    assert clock.seconds() == 0


def test_speed_is_that_since_the_last_line(now: list[float]) -> None:
    """A run that goes on at 1,000 images has not made these in this program."""
    tracker: Any = _Recorder()
    stats: Any = SimpleNamespace(read=lambda: {"loss_D": 1.0, "loss_G": 2.0})
    bar: Any = SimpleNamespace(bar=SimpleNamespace(disable=False, set_postfix_str=lambda *_, **__: None))
    progress = LogProgress(100, 1000, 10_000, stats, tracker, bar, Clock(), MAIN)
    for nimg, seconds in ((1100, 2), (1400, 3)):
        now[0] += seconds
        progress(_state(nimg))
    assert [(nimg, values["images_per_sec"]) for nimg, values in tracker.told] == [(1100, 50), (1400, 100)]
    progress(_state(1200))
    assert len(tracker.told) == 2, "nothing is told of the step back"
    now[0] += 4
    progress(_state(1300))
    assert tracker.told[-1][1]["images_per_sec"] == 25
