"""`gan-dist evaluate RUN`: measure FID, KID and Inception Score of a trained run."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from gan_dist.errors import ConfigError, UserError
from gan_dist.files import open_to_append
from gan_dist.settings.config import check, load_config

FILE = "evaluations.jsonl"


def evaluate(arguments: list[str]) -> int:
    """Parse the arguments, measure in all processes together, then print the results and add them to a file."""
    parser = argparse.ArgumentParser(
        "gan-dist evaluate",
        description=f"Measure a run's averaged generator G_ema, and add the result and its protocol to RUN/{FILE}. "
        "To use several GPUs, type: accelerate launch --multi_gpu -m gan_dist evaluate RUN",
    )
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument(
        "settings", nargs="*", help="key.sub=value, which replaces a setting of the run; use metrics.* and data.*"
    )
    parser.add_argument(
        "--checkpoint",
        default="latest",
        help="latest, best, a name in RUN/checkpoints, or all for every checkpoint without a result of this protocol "
        f"in {FILE} (default latest)",
    )
    parser.add_argument(
        "--n",
        type=int,
        help="number of images to generate (default 50000; if the metrics count modes, metrics.num_images of the run)",
    )
    options = parser.parse_intermixed_args(arguments)

    from gan_dist import evaluation
    from gan_dist.checkpoint.find import find_checkpoint
    from gan_dist.checkpoint.lock import refuse_links
    from gan_dist.wiring.kinds import kind_of

    refuse_links(options.run)
    every = options.checkpoint == "all"
    checkpoint = find_checkpoint(options.run, "latest" if every else options.checkpoint)
    config = load_config(checkpoint / "config.yaml", options.settings)
    number = kind_of(config.data).num_images if options.n is None else options.n
    if number is not None:
        config.metrics.num_images = number
        check(config)
    results = options.run / FILE
    if not os.access(results if results.exists() else options.run, os.W_OK):
        raise ConfigError(f"{results}: the result cannot be added there; measure a copy of the run on another disk")
    evaluation.evaluate(
        config, options.run, None if every else checkpoint, results, lambda result: _store(results, result)
    )
    return 0


def _store(path: Path, result: dict[str, object]) -> None:
    line = json.dumps(result)
    for name, value in result.items():
        print(f"{name:<16} {value:.6g}" if isinstance(value, float) else f"{name:<16} {value}")
    try:
        with open_to_append(path) as file:
            file.write(f"{line}\n".encode())
    except OSError as error:
        raise UserError(f"{path}: cannot add the result there ({error.strerror})") from None
    print(f"added to         {path}")
