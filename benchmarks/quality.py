"""Train recipes with the same budget of images and compare the results.

    python -m benchmarks quality [--kimg 200] [--seeds 1] [--jobs 2] [--runs DIR] [--json FILE] [--grids DIR]
                                 [--recipes A,B] [key.sub=value ...]
    python -m benchmarks quality --recipes grid_gan,grid_wgan_gp,grid_rpgan --kimg 3000 --seeds 3
    python -m benchmarks quality --recipes dcgan_fashion_mnist,wgan_gp_fashion_mnist data.stacked=true \\
                                 metrics.num_images=26000

To continue interrupted runs, start the command again with the same --runs. Each recipe keeps its own networks, losses,
optimizers and batches. All recipes get the same budget of images shown to D; schedules over the length of training, and
growth, are scaled to it. The settings at the end apply to all runs, for example data.root.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import arena
from gan_dist.settings.config import load_config

ROOT = Path(__file__).parent.parent
# In the order of docs/family.md.
RECIPES = [
    f"{name}_fashion_mnist" for name in ("mlp", "cgan", "dcgan", "lsgan", "wgan", "wgan_gp", "sngan", "pggan", "r3gan")
]
OF_IMAGES = {"fid_classifier": 2, "precision_classifier": 3, "recall_classifier": 3}  # figure -> digits to show
OF_POINTS = {"high_quality": 3, "modes": 0}
OF_STACKED = {"kl": 3, "modes": 0}


def settings(recipe: str, kimg: float, seed: int) -> list[str]:
    """The settings that all runs share, and growth in proportion to the budget."""
    common = [f"train.kimg={kimg}", f"train.seed={seed}", f"metrics.every_kimg={kimg}", f"sample.every_kimg={kimg}"]
    growth = [f"growth.stable_kimg={kimg / 6}", f"growth.fade_kimg={kimg / 6}"] if recipe.startswith("pggan") else []
    return [*common, *growth, "checkpoint.every_kimg=20", "checkpoint.keep=1", "tracking.wandb=disabled"]


def run(command: list[str]) -> float:
    """Run it on one thread; return its processor time in seconds, which other work on the machine hardly changes."""
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        raise subprocess.CalledProcessError(code, command)
    return usage.ru_utime + usage.ru_stime


def train(recipe: str, kimg: float, seed: int, runs: Path, overrides: list[str]) -> dict[str, Any]:
    """Train one run in its own process; return its last figures and its minutes (of the last part, if interrupted)."""
    folder = runs / f"{recipe}-{seed}"
    result = folder / "quality.json"
    if result.exists():
        return json.loads(result.read_text())
    seconds = run(
        [sys.executable, str(ROOT / "train.py"), str(ROOT / f"configs/{recipe}.yaml"),
         *settings(recipe, kimg, seed), *overrides, f"run.dir={folder}", "resume=auto"]
    )  # fmt: skip
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if "protocol" in line][-1]
    found = {"recipe": recipe, "seed": seed, **{k: v for k, v in last.items() if isinstance(v, float)}}
    found["minutes"] = seconds / 60
    result.write_text(json.dumps(found))
    return found


def spread(values: list[float], digits: int) -> str:
    """The median, and the range if there are several values, as text."""
    middle = f"{statistics.median(values):.{digits}f}"
    return f"{middle} ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else middle


def table(results: list[dict[str, Any]]) -> str:
    """A Markdown table with one row per recipe, sorted by the first figure, the best recipe first."""
    figures = OF_POINTS if "high_quality" in results[0] else OF_STACKED if "kl" in results[0] else OF_IMAGES
    columns = figures | {"minutes": 1}
    rows = []
    for recipe in {result["recipe"] for result in results}:
        labels = "yes" if load_config(ROOT / f"configs/{recipe}.yaml").model.conditional else "no"
        of = {name: [r[name] for r in results if r["recipe"] == recipe] for name in columns}
        figures = [spread(of[name], digits) for name, digits in columns.items()]
        first = statistics.median(of[next(iter(columns))])
        rows.append((-first if "high_quality" in of else first, f"| `{recipe}` | {labels} | {' | '.join(figures)} |"))
    head = f"| recipe | labels | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 2)}"
    return "\n".join([head, *(row for _, row in sorted(rows))])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kimg", type=float, default=200, help="thousands of images shown to D (default 200)")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each recipe (default 1)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one thread each (default 2)")
    parser.add_argument("--runs", type=Path, default=Path("runs/quality"), help="where the runs are")
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--grids", type=Path, help="copy the last grid of each recipe's first run here")
    parser.add_argument("--recipes", default=",".join(RECIPES), help="some of them, separated by commas")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    recipes = options.recipes.split(",")
    tasks = [(recipe, seed) for seed in range(options.seeds) for recipe in reversed(recipes)]  # the longest runs first
    with ThreadPoolExecutor(options.jobs) as pool:
        running = [
            pool.submit(train, recipe, options.kimg, seed, options.runs, options.overrides) for recipe, seed in tasks
        ]
        results = [future.result() for future in running]
    print(table(results))
    if options.grids:
        options.grids.mkdir(parents=True, exist_ok=True)
        for recipe in recipes:
            last = max((options.runs / f"{recipe}-0/samples").glob("grid-*.png"))
            shutil.copy(last, options.grids / f"{recipe}.png")
    arena.write(options.json, {"command": sys.argv, "results": results})


if __name__ == "__main__":
    main()
