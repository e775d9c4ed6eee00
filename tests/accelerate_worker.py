"""What `test_accelerate_versions.py` runs in 1 and 2 processes: a short run that needs all of the adapter.

It grows, so that networks are released and prepared again, in bf16, with a penalty. The last line that rank 0 prints
is a JSON object.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import accelerate
import torch
from conftest import load_recipe

from gan_dist.data.datasets import describe
from gan_dist.models.pggan import Conv
from gan_dist.parallel.accelerate_adapter import forward_without_autocast
from gan_dist.parallel.distributed import Distributed
from gan_dist.parallel.signals import StopSignals
from gan_dist.wiring.build import build
from gan_dist.wiring.data import source_of


def main() -> None:
    dist = Distributed("bf16", cpu=True)
    config = load_recipe(
        "pggan_fashion_mnist",
        *("train.batch_size=8", "train.kimg=0.16", "train.precision=bf16", "log.every_kimg=0.04"),
        *("sample.every_kimg=0", "metrics.every_kimg=0", "checkpoint.every_kimg=0", "tracking.wandb=disabled"),
    )
    config.growth.stable_kimg = config.growth.fade_kimg = 0.024
    config.growth.batch_sizes = []
    with tempfile.TemporaryDirectory() as folder:
        run = build(config, describe(source_of(config.data)), Path(folder), None, dist)
        finished = run.train(StopSignals())
    seen: list[torch.dtype] = []
    D = run.state.D
    last = [module for module in D.modules() if isinstance(module, Conv)][-1]
    last.register_forward_hook(lambda *arguments: seen.append(arguments[2].dtype))
    x = torch.zeros(4, *run.state.G.image_shape)
    D(x)
    forward_without_autocast(D)(x)
    if dist.is_main:
        found = {
            "version": accelerate.__version__,
            "finished": finished,
            "stage": D.stage,
            "dtypes": [str(dtype) for dtype in seen],
            "loaders": len(dist._accelerator._dataloaders),
            "models": len(dist._accelerator._models),
        }
        print(json.dumps(found), flush=True)
    dist.end()


if __name__ == "__main__":
    main()
