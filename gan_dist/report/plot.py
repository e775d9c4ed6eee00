"""Plot the losses and the FID of a run against the number of images seen."""

from __future__ import annotations

from pathlib import Path

from gan_dist.files import replacing
from gan_dist.report.tracking import read_metrics


def plot_run(run_dir: Path) -> Path:
    """Draw `plot.png` in the run directory from `metrics.jsonl`, and return its path.

    Raises:
        OSError: the picture cannot be written.
    """
    from matplotlib.figure import Figure

    lines = read_metrics(run_dir / "metrics.jsonl")
    figure = Figure(figsize=(10, 4), layout="constrained")
    losses, quality = figure.subplots(1, 2)
    for name in ("loss_D", "loss_G"):
        points = [(line["kimg"], line[name]) for line in lines if line.get(name) is not None]
        losses.plot(*zip(*points) if points else ([], []), label=name)
    for name in sorted({key for line in lines for key in line if key.startswith("fid_")}):
        points = [(line["kimg"], line[name]) for line in lines if line.get(name) is not None]
        if points:
            quality.plot(*zip(*points), marker="o", label=f"{name}, last {points[-1][1]:.3g}")
            quality.set_yscale("log")
    for axes, title in ((losses, "loss"), (quality, "FID of G_ema (log scale)")):
        axes.set(title=title, xlabel="kimg")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    path = run_dir / "plot.png"
    with replacing(path, flush=False) as file:
        figure.savefig(file, dpi=100, format="png")
    return path
