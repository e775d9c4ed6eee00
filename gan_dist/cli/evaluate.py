"""`gan-dist evaluate RUN`: FID, KID and Inception Score of a trained run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from gan_dist.data import POINTS
from gan_dist.errors import UserError
from gan_dist.report.tracking import read_metrics
from gan_dist.settings.config import check, load_config

FILE = "evaluations.jsonl"


def evaluate(arguments: list[str]) -> int:
    """Parse, measure on all processes, print and store."""
    parser = argparse.ArgumentParser(
        "gan-dist evaluate",
        description=f"Measure a run's averaged generator; the result is added to RUN/{FILE} with its protocol. "
        "On several processes: accelerate launch --multi_gpu -m gan_dist evaluate RUN",
    )
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("settings", nargs="*", help="key.sub=value over the run's config: metrics.* and data.* matter")
    parser.add_argument(
        "--checkpoint", default="latest", help=f"name below RUN/checkpoints, latest, best, or all that {FILE} lacks"
    )
    parser.add_argument(
        "--n", type=int, help="images to generate (default 50000; where modes are counted, as many as the run)"
    )
    options = parser.parse_intermixed_args(arguments)

    from gan_dist.checkpoint.files import find_checkpoint, list_checkpoints
    from gan_dist.checkpoint.lock import refuse_links

    refuse_links(options.run)
    every = options.checkpoint == "all"
    checkpoint = find_checkpoint(options.run, "latest" if every else options.checkpoint)
    config = load_config(checkpoint / "config.yaml", options.settings)
    if options.n is not None or not (config.data.stacked or config.data.name in POINTS):
        config.metrics.num_images = 50_000 if options.n is None else options.n
        check(config)
    from gan_dist.kernels.switches import numerics
    from gan_dist.parallel.distributed import Distributed
    from gan_dist.wiring.build import evaluate_checkpoints

    dist = Distributed("fp32", cpu=config.train.device == "cpu")
    try:
        checkpoints, known = [checkpoint], []
        if every:
            checkpoints = dist.from_main(lambda: list_checkpoints(options.run))
            known = dist.from_main(lambda: read_metrics(options.run / FILE))
        with numerics("fp32", exact=True):
            for result in evaluate_checkpoints(checkpoints, config, dist, known):
                if dist.is_main:
                    _store(options.run / FILE, result)
        dist.end()
    except Exception as error:
        raise dist.failure(error) from error
    return 0


def _store(path: Path, result: dict[str, object]) -> None:
    line = json.dumps(result)
    for name, value in result.items():
        print(f"{name:<16} {value:.6g}" if isinstance(value, float) else f"{name:<16} {value}")
    try:
        with path.open("a") as file:
            file.write(line + "\n")
    except OSError as error:
        raise UserError(f"{path}: cannot add the result there ({error.strerror})") from None
    print(f"added to         {path}")
