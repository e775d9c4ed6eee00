"""What `test_shared_gpu.py` runs in 1 process, and in 2 that share a GPU: `shared_gpu_worker.py FOLDER IMAGES`.

Rank 0 leaves `FOLDER/<job>.safetensors`, `FOLDER/results.json` and a run in `FOLDER/run`, which one process finishes
and two processes stop. The two then train without end by the real command line, so that one of them can be killed.
Without a GPU all of this runs on CPUs.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import resume_worker
import torch
from conftest import RECIPES, TINY, load_recipe, mixes_samples
from distributed_worker import CPU, Jobs

from gan_dist import cli
from gan_dist.parallel.accelerate_adapter import forget_state
from gan_dist.parallel.distributed import Distributed
from gan_dist.settings.schema import Config

STOPPED = "dcgan_fashion_mnist"


def config_to_stop(images: Path) -> Config:
    """Of a run whose images stay in files: a data worker reads them into pinned memory."""
    settings = [f"data.root={images}", "data.name=folder", "data.class_folders=true", "data.hflip=true"]
    precision = ["train.precision=fp64", "data.workers=1", "train.micro_batch_size=0"]
    return load_recipe(STOPPED, *resume_worker.COMMON, *settings, *precision)


# Where a gradient is all rounding, Adam takes a full step in either direction; with a large eps it takes almost none.
# In fp64 the rounding is far below its own eps.
LARGE_EPS = ["optim.G.args={eps: 1e-3}", "optim.D.args={eps: 1e-3}"]


def train_all(jobs: Jobs) -> Distributed:
    """Every recipe in fp64 and in fp32, and with micro-batches where they change nothing."""
    dist = Distributed("fp64", cpu=CPU)
    for recipe in RECIPES:
        jobs.train(dist, f"fp64-{recipe}", recipe)
        if not mixes_samples(recipe):
            jobs.train(dist, f"split-{recipe}", recipe, "train.micro_batch_size=2")
    dist = Distributed("fp32", cpu=CPU)
    for recipe in RECIPES:
        jobs.train(dist, f"fp32-{recipe}", recipe, *LARGE_EPS)
    return dist


def main() -> int:
    folder, images = Path(sys.argv[1]), Path(sys.argv[2])
    jobs = Jobs(folder, digits=True)
    dist = train_all(jobs)
    jobs.metrics(dist)
    jobs.gradients(dist, "gradients", "digits")
    jobs.compressed()
    jobs.mixed()
    forget_state()
    dist = Distributed("fp64", cpu=CPU)
    resume_worker.train(folder / "run", config_to_stop(images), dist, stop=dist.several)
    jobs.results["backend"], jobs.results["device"] = dist.backend, str(dist.device)
    index, local_main = torch.tensor([[dist.device.index or 0]]), torch.tensor([[int(dist.is_local_main)]])
    jobs.results["of each rank"] = dist.gather(torch.cat([index, local_main], dim=1)).tolist()
    if dist.is_main:
        (folder / "results.json").write_text(json.dumps(jobs.results))
    if not dist.several:
        return 0
    endless = [setting for setting in TINY if not setting.startswith(("train.kimg", "train.device"))]
    os.chdir(folder)
    settings = [*endless, "train.kimg=100000", "train.precision=fp64", "run.dir=killed"]
    return cli.main(["train", *settings, *(["train.device=cpu"] if CPU else [])])


if __name__ == "__main__":
    sys.exit(main())
