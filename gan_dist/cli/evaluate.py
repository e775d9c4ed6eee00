"""`gan-dist evaluate RUN`: measure FID, KID and Inception Score of a trained run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gan_dist.checkpoint.directory import EVALUATIONS
from gan_dist.cli.arguments import Parser, path, whole
from gan_dist.errors import escaped
from gan_dist.wiring.words import expanded


def evaluate(arguments: list[str]) -> int:
    """Parse the arguments, measure in all processes together, then print the results and add them to a file."""
    parser = Parser(
        "gan-dist evaluate",
        description="Measure a run's averaged generator G_ema, and add the result and its protocol to "
        f"RUN/{EVALUATIONS}. To use several GPUs, type: accelerate launch --multi_gpu -m gan_dist evaluate RUN",
    )
    parser.add_argument("run", type=path, help="run directory")
    parser.add_argument(
        "settings",
        nargs="*",
        help="key.sub=value, which replaces a setting of the run; use metrics.*, data.* or train.device",
    )
    parser.add_argument(
        "--checkpoint",
        type=expanded,
        default="latest",
        help="latest, best, a name in RUN/checkpoints, a path, or all for every checkpoint without a result of this "
        f"protocol in {EVALUATIONS} (default latest)",
    )
    parser.add_argument(
        "--n",
        type=whole,
        help="number of images to generate (default 50000; if the metrics count modes, metrics.num_images of the run)",
    )
    options = parser.parse_intermixed_args(arguments)

    from gan_dist import evaluation
    from gan_dist.parallel.peers import Peers
    from gan_dist.report.log import log_to

    Peers.ends_process = True
    log_to(None)
    evaluation.evaluate(
        options.run,
        options.checkpoint,
        options.settings,
        options.n,
        lambda result: _show(options.run / EVALUATIONS, result),
    )
    return 0


def _show(path: Path, result: dict[str, Any]) -> None:
    """Print a result that is in the file: an output that cannot be written must not cost the result."""
    for name, value in result.items():
        print(escaped(f"{name:<16} {value:.6g}" if isinstance(value, float) else f"{name:<16} {value}"))
    print(escaped(f"added to         {path}"))
