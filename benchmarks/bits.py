"""Hashes of the results of short runs of all recipes, to compare before and after a change that must change no bit.

`python -m benchmarks bits [--recipes a,b] [--against FILE] [--json FILE]` trains every recipe on the CPU with one
thread, small widths, and random images with the recipe's own number of channels. Each run has eight iterations, D steps
with a penalty and without one, a stop with a resume, and one evaluation at its end; a run that grows goes through all
stages. The hashes are of the networks' weights, the average of G, the optimizers' moments, and the lines of
`metrics.jsonl` without the times.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.gpu_bits import figures, recipes, settings, train
from benchmarks.gpu_runs import configure, precision_of, stand_in_data
from gan_dist.kernels.switches import numerics

COLUMNS = {"weights": ("G.", "D."), "average": ("G_ema.",), "moments": ("opt_G.", "opt_D.")}


def hashes(recipe: str, folder: Path) -> dict[str, str]:
    """Train a recipe to its middle, resume it, train it to its end, and hash the results."""
    own, nimg = settings(recipe, tiny=True)
    own += ["train.device=cpu", "metrics.extractor=classifier", "metrics.num_images=64", "metrics.batch_size=32"]
    config, info = configure(recipe, own, tiny=True)
    config.metrics.every_kimg = 1000.0 if info.num_classes else 0.0  # a classifier needs labels
    run_dir = folder / recipe
    with numerics(precision_of(config), config.train.exact):
        train(config, info, run_dir, nimg, stop=True)
        _, end = train(config, info, run_dir, nimg, stop=False)
    found = {}
    for column, prefixes in COLUMNS.items():
        found[column] = hash_of({name: tensor for name, tensor in end.items() if name.startswith(prefixes)})
    lines = json.dumps(figures(run_dir), sort_keys=True)
    return {**found, "figures": hashlib.sha256(lines.encode()).hexdigest()[:12]}


def hash_of(tensors: dict[str, Tensor]) -> str:
    """A hash of the names, shapes and bits of tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        array = tensor.detach().cpu().contiguous().numpy()
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:12]


def main() -> None:
    """Print one row for each recipe. The exit status is 1 if a recipe differs from the file given by --against."""
    parser = argparse.ArgumentParser("python -m benchmarks bits", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--recipes", help="names separated by commas (default: all)")
    parser.add_argument("--against", type=Path, help="a file written by --json, to compare with")
    parser.add_argument("--json", type=Path, help="file to write the hashes to")
    options = parser.parse_args()
    before = json.loads(options.against.read_text()) if options.against else {}
    torch.set_num_threads(1)
    started, rows = time.perf_counter(), {}
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, 1 thread")
    print(f"{'recipe':<30}" + "".join(f"{column:<14}" for column in (*COLUMNS, "figures")))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, stand_in_data():
        os.environ["GAN_DIST_CACHE"] = folder  # for the classifiers of the metrics
        for recipe in options.recipes.split(",") if options.recipes else sorted(recipes()):
            rows[recipe] = hashes(recipe, Path(folder))
            differs = [column for column, value in before.get(recipe, {}).items() if rows[recipe][column] != value]
            note = f"differs: {', '.join(differs)}" if differs else ""
            print(f"{recipe:<30}" + "".join(f"{value:<14}" for value in rows[recipe].values()) + note, flush=True)
    print(f"{time.perf_counter() - started:.0f} s")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    same = all(rows[recipe] == before[recipe] for recipe in rows if recipe in before)
    if before:
        print("the same bits" if same else "other bits", f"in {len(rows.keys() & before.keys())} recipes")
    raise SystemExit(0 if same else 1)
