"""What is said at the end of a run, and the guard around what comes after its training."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gan_dist.checkpoint.find import list_checkpoints
from gan_dist.report.log import in_kimg

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ending:
    """How a start of a run has ended.

    Attributes:
        run_dir: the run directory.
        finished: the training is finished; False if a signal has stopped it.
        first_nimg: images that the run had seen when this start began.
        nimg: images that the run has seen now.
        points: G makes points, which `gan-dist sample` does not show.
        processes: number of processes of the run.
        plugins: the modules of users' parts that the run has imported.
    """

    run_dir: Path
    finished: bool
    first_nimg: int
    nimg: int
    points: bool
    processes: int
    plugins: Sequence[str] = ()


@contextmanager
def harmless(what: str) -> Iterator[None]:
    """A context for work after the training: an error in it is logged, and does not make the run a failed one.

    Args:
        what: what did not work if there is an error, for the log.
    """
    try:
        yield
    except Exception as error:
        log.warning("%s: %s: %s", what, type(error).__name__, error)


def say_last_words(ending: Ending, seconds: float) -> None:
    """Log how a run has ended, and where its pictures, metrics and checkpoints are.

    Only files that exist are named. Those that are newer than the run, because it has gone back to an earlier
    checkpoint, are not named.

    Args:
        ending: how it has ended.
        seconds: how long this start of the run has taken.
    """
    run_dir, kimg = ending.run_dir, in_kimg(ending.nimg)
    trained = ending.nimg - ending.first_nimg
    plugins = " " + shlex.quote(f"plugins=[{','.join(ending.plugins)}]") if ending.plugins else ""
    if not ending.finished:
        command = f"{_program(ending.processes)} {shlex.quote(f'run.dir={run_dir}')} resume=latest{plugins}"
        log.info("stopped at %s kimg; go on with: %s", kimg, command)
    elif trained <= 0:
        log.info("nothing was left to train: the run has %s kimg already", kimg)
    elif ending.first_nimg:
        log.info("finished: %s kimg, the last %s of them in %.0f s", kimg, in_kimg(trained), seconds)
    else:
        log.info("finished: %s kimg in %.0f s", kimg, seconds)
    grids = [path for path in sorted((run_dir / "samples").glob("grid-*.png")) if _kimg_of(path) <= ending.nimg / 1000]
    checkpoints = [path for path in list_checkpoints(run_dir) if int(path.name) <= ending.nimg]
    places = {
        "samples": grids[-1:],
        "metrics": [path for path in (run_dir / "metrics.jsonl", run_dir / "plot.png") if path.exists()],
        "checkpoint": checkpoints[-1:],
    }
    for name, paths in places.items():
        if paths:
            log.info("  %-11s %s", name, " and ".join(map(str, paths)))
    if checkpoints and not ending.points:
        log.info("  sample it   gan-dist sample %s --n 64 --grid%s", shlex.quote(str(run_dir)), plugins)


def _program(processes: int) -> str:
    """Return the command that starts this program in so many processes, without its arguments."""
    script = Path(sys.argv[0]).name == "train.py"
    if processes > 1:
        launch = f"accelerate launch --multi_gpu --num_processes {processes}"
        return f"{launch} train.py" if script else f"{launch} -m gan_dist train"
    return "python train.py" if script else "gan-dist train"


def _kimg_of(picture: Path) -> float:
    """Return the kimg in the name of a picture, `<name>-<kimg>.png`; infinity if there is no number."""
    try:
        return float(picture.stem.rpartition("-")[2])
    except ValueError:
        return float("inf")
