"""Plot the losses and the metrics of a run against the number of images seen, while the run goes on."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path
from typing import Any

import numpy as np

from gan_dist.files import replacing
from gan_dist.place import Place
from gan_dist.report.tracking import Outcome, number, read_metrics

LOSSES = ("loss_D", "loss_G")
MOST_POINTS = 2000  # of a curve: a picture that is 500 pixels wide shows no more
MOST_METRICS = 20  # more curves of metrics are not drawn
SHARE = 0.01  # share of a run's time that may be spent on drawing before the end

# Metric, without the name of its feature extractor -> title of the panel in which it is drawn, and scale. Any other
# metric gets a panel of its own.
PANELS = {
    "fid": ("FID of G_ema (log scale)", "log"),
    "kid": ("KID of G_ema", "linear"),
    "is": ("Inception Score of G_ema", "linear"),
    "precision": ("precision and recall of G_ema", "linear"),
    "recall": ("precision and recall of G_ema", "linear"),
    "modes": ("modes that G_ema has found", "linear"),
    "high_quality": ("share of high-quality points of G_ema", "linear"),
    "kl": ("KL divergence of the modes of G_ema", "linear"),
}


class Curve:
    """The points of a curve. Whenever there are too many, each two neighbours are replaced by their mean.

    Attributes:
        points: (kimg, value), in the order in which they were added.
        last: the last value.
    """

    def __init__(self) -> None:
        self.points: list[tuple[float, float]] = []
        self.last = 0.0

    def add(self, kimg: float, value: float) -> None:
        """Add a point."""
        self.points.append((kimg, value))
        self.last = value
        if len(self.points) >= MOST_POINTS:
            pairs = zip(self.points[::2], self.points[1::2])
            self.points = [((a + b) / 2, (x + y) / 2) for (a, x), (b, y) in pairs]

    def rewind(self, kimg: float) -> None:
        """Forget the points after `kimg`."""
        self.points = [point for point in self.points if point[0] <= kimg]
        self.last = self.points[-1][1] if self.points else 0.0


class PlotTracker:
    """Draws `plot.png` in the run directory: after grids and evaluations, if that takes little time, and at the end.

    Its interface is `gan_dist.report.tracking.Tracker`.

    Args:
        run_dir: the run directory. The curves begin with what `metrics.jsonl` holds.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir, self._place = run_dir, Place(run_dir)
        self._losses: dict[str, Curve] = {}
        self._metrics: dict[str, Curve] = {}
        self._next = 0.0  # time from which the picture may be drawn again
        for line in read_metrics(run_dir / "metrics.jsonl"):
            self._add(line["kimg"], line)

    def scalars(self, nimg: int, values: dict[str, Any]) -> None:
        self._add(nimg / 1000, values)
        if nimg and "protocol" in values:
            self._draw_if_cheap()

    def image(self, nimg: int, name: str, picture: np.ndarray) -> None:
        if nimg and name == "grid":
            self._draw_if_cheap()

    def rewind(self, nimg: int) -> None:
        for curve in (*self._losses.values(), *self._metrics.values()):
            curve.rewind(nimg / 1000)

    def finish(self, outcome: Outcome, artifact: Path | None = None) -> None:
        self._draw()

    def _add(self, kimg: float, values: dict[str, Any]) -> None:
        """Add the losses of a line; of a line with a protocol, which is an evaluation, add all metrics."""
        evaluation = isinstance(values.get("protocol"), dict)
        curves = self._metrics if evaluation else self._losses
        for name in values if evaluation else LOSSES:
            value = number(values.get(name))
            # Such names are also those that matplotlib does not take for formulas.
            if value is None or name == "kimg" or not re.fullmatch(r"[\w.-]{1,60}", name):
                continue
            if name in curves or len(curves) < MOST_METRICS:
                curves.setdefault(name, Curve()).add(kimg, value)

    def _draw_if_cheap(self) -> None:
        """Draw, but so seldom that drawing takes at most SHARE of the time."""
        if time.monotonic() >= self._next:
            begun = time.monotonic()
            self._draw()
            ended = time.monotonic()
            self._next = ended + (ended - begun) / SHARE

    def _draw(self) -> None:
        """Draw a panel for the losses and for each kind of metric. The picture replaces the last one as a whole."""
        panels: dict[str, dict[str, Curve]] = {}
        scales = {"loss": "linear"}
        for name, curve in self._losses.items():
            if curve.points:
                panels.setdefault("loss", {})[name] = curve
        for name, curve in self._metrics.items():
            if curve.points:
                title, scales[title] = _panel(name)
                panels.setdefault(title, {})[f"{name}, last {curve.last:.3g}"] = curve
        if not panels:
            return
        from matplotlib.figure import Figure

        columns, rows = min(len(panels), 3), -(-len(panels) // 3)
        figure = Figure(figsize=(5 * columns, 4 * rows), layout="constrained")
        for i, (title, curves) in enumerate(panels.items()):
            axes = figure.add_subplot(rows, columns, i + 1)
            axes.set(title=title, xlabel="kimg", yscale=scales[title])
            axes.grid(alpha=0.3)
            for label, curve in curves.items():
                axes.plot(*np.transpose(curve.points), marker="" if title == "loss" else "o", markersize=4, label=label)
            axes.legend()
        picture = io.BytesIO()
        figure.savefig(picture, dpi=100, format="png")
        if not self._place.moved():  # asked after the drawing, which takes time; the local tracker says so
            with replacing(self._run_dir / "plot.png", flush=False) as file:
                file.write(picture.getbuffer())


def _panel(metric: str) -> tuple[str, str]:
    """Return the title and the scale of the panel of a metric."""
    found = (panel for name, panel in PANELS.items() if metric == name or metric.startswith(f"{name}_"))
    return next(found, (metric, "linear"))
