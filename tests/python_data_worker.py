"""What `test_python_data.py` runs in 1 and 2 processes: `python_data_worker.py FOLDER`, with a launcher's variables.

It trains once in one go, each process reading by itself; and once with data workers and in two parts. The last rank
leaves `FOLDER/results.json`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from conftest import TINY
from test_python_data import Noise, drawn_anew

from gan_dist.checkpoint.find import FILES, find_checkpoint
from gan_dist.data.datasets import describe
from gan_dist.errors import UserError
from gan_dist.parallel.distributed import Distributed
from gan_dist.parallel.signals import StopSignals
from gan_dist.parallel.together import together
from gan_dist.settings.config import load_config
from gan_dist.wiring.build import build
from gan_dist.wiring.data import source_of, use_given


def train(dist: Distributed, run_dir: Path, dataset: Any, kimg: float, workers: int) -> None:
    """Train from the newest checkpoint on, if there is one."""
    settings = ["train.batch_size=8", f"train.kimg={kimg}", f"data.workers={workers}", "sample.every_kimg=0"]
    config = load_config(None, [*TINY, *settings])
    use_given(config, dataset)
    if dist.is_main:
        run_dir.mkdir(exist_ok=True)
    dist.barrier()
    checkpoint = dist.from_main(lambda: find_checkpoint(run_dir) if (run_dir / "checkpoints").exists() else None)
    info = dist.from_main(lambda: describe(source_of(config.data, dataset)))
    run = build(config, info, run_dir, checkpoint, dist, given=dataset)
    assert run.train(StopSignals())
    run.save.wait()
    dist.barrier()


def main() -> None:
    folder, dist = Path(sys.argv[1]), Distributed("fp64", cpu=True)
    train(dist, folder / "whole", Noise(drawn_anew), 0.096, workers=0)
    train(dist, folder / "parts", Noise(drawn_anew), 0.04, workers=2)
    train(dist, folder / "parts", Noise(drawn_anew), 0.096, workers=2)
    results: dict[str, Any] = {"other data": ""}
    try:  # another data set in each process
        together(dist, lambda: train(dist, folder / "other", Noise(seed=dist.rank), 0.008, workers=0))
    except UserError as error:
        results["other data"] = str(error)
    if dist.rank == dist.world_size - 1:
        whole, parts = (folder / name / "checkpoints/000000000096" for name in ("whole", "parts"))
        names = [name for name in FILES if name.endswith(".safetensors")]
        results["differ"] = [name for name in names if (whole / name).read_bytes() != (parts / name).read_bytes()]
        (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
