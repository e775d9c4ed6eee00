"""The well-known failures of GANs, one picture each, on points of the plane. Takes some minutes on one core.

    python -m benchmarks failures [--runs DIR] [--out docs/images] [key.sub=value ...]

Runs that already exist are not trained again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file
from torch import Tensor

import gan_dist
from gan_dist import rng
from gan_dist.data.points import modes
from gan_dist.rng import Purpose

ROOT = Path(__file__).parent.parent
KIMG = 1500
# name -> (config, settings that differ from it)
RUNS = {
    "plain": ("grid_gan", []),
    "minimax": ("grid_gan", ["loss.name=minimax"]),
    "paired": ("grid_rpgan", []),
    "clipped": ("grid_wgan_gp", ["loss.gradient_penalty=0", "loss.clip_weights=0.1"]),
    "penalised": ("grid_wgan_gp", []),
}


def train(name: str, runs: Path, overrides: list[str]) -> Path:
    """Train a run of `RUNS` if it does not exist yet; return its directory."""
    config, changes = RUNS[name]
    settings = [f"train.kimg={KIMG}", "log.every_kimg=10", "metrics.every_kimg=0", "sample.every_kimg=0"]
    subprocess.run(
        [sys.executable, str(ROOT / "train.py"), str(ROOT / f"configs/{config}.yaml"), *settings, *changes, *overrides,
         "tracking.wandb=disabled", "train.device=cpu", f"run.dir={runs / name}", "resume=auto"],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, check=True,
    )  # fmt: skip
    return runs / name


@torch.no_grad()
def points(run: Path) -> Tensor:
    """2,500 points from the averaged generator of a run: (2500, 2)."""
    G = gan_dist.load_generator(run)
    z_dim: int = G.z_dim  # type: ignore[assignment]
    return G(rng.latents(0, Purpose.SAMPLE_LATENT, 0, 2500, z_dim).float()).flatten(1)


def curve(run: Path, name: str) -> tuple[list[float], list[float]]:
    """A logged figure as a function of kimg: (kimg, values)."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = [(line["kimg"], line[name]) for line in lines if name in line]
    return [kimg for kimg, _ in found], [value for _, value in found]


def critic_weights(run: Path) -> Tensor:
    """All weights of the D of a run, without biases, as one vector."""
    D = load_file(max((run / "checkpoints").iterdir()) / "D.safetensors")
    return torch.cat([tensor.flatten() for tensor in D.values() if tensor.ndim > 1])


def collapse(runs: dict[str, Path], path: Path) -> None:
    """Points of the plain GAN, and points of relativistic pairs with R1 and R2."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    titles = {"plain": "plain GAN: modes are lost", "paired": "relativistic pairs, R1 and R2: all 25"}
    for axes, (name, title) in zip(figure.subplots(1, 2), titles.items()):
        axes.scatter(*modes("grid").T, s=250, facecolors="none", edgecolors="tab:orange", linewidths=0.8)
        axes.scatter(*points(runs[name]).T, s=2, alpha=0.4, linewidths=0)
        axes.set(title=title, xlim=(-5, 5), ylim=(-5, 5), aspect="equal")
    figure.savefig(path, dpi=80)


def stalling(runs: dict[str, Path], path: Path) -> None:
    """The norm of G's gradient with each of the two losses of 2014."""
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    axes = figure.subplots()
    for name, label in (("plain", "non-saturating: -log D(G(z))"), ("minimax", "minimax: log(1 - D(G(z)))")):
        axes.plot(*curve(runs[name], "grad_norm_G"), label=label, linewidth=1)
    axes.set(xlabel="kimg", ylabel="norm of G's gradient", yscale="log")
    axes.legend()
    figure.savefig(path, dpi=80)


def saturation(runs: dict[str, Path], path: Path) -> None:
    """The values of the critic's weights after clipping, and with a gradient penalty."""
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    titles = {"clipped": "clipping at 0.1: weights at the two bounds", "penalised": "gradient penalty"}
    for axes, (name, title) in zip(figure.subplots(1, 2), titles.items()):
        axes.hist(critic_weights(runs[name]).numpy(), bins=81)
        axes.set(title=title, xlabel="weight of the critic", ylabel="how many", yscale="log")
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/failures"), help="where the runs are")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/images", help="where the pictures go")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    runs = {name: train(name, options.runs, options.overrides) for name in RUNS}
    options.out.mkdir(parents=True, exist_ok=True)
    collapse(runs, options.out / "mode_collapse.png")
    stalling(runs, options.out / "minimax_stalls.png")
    saturation(runs, options.out / "clipping_saturates.png")


if __name__ == "__main__":
    main()
