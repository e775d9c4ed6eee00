"""The life of one run: its directory and lock, resuming, its log, the training, and the last words."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path

import torch

from gan_dist.checkpoint.find import find_checkpoint, list_checkpoints
from gan_dist.checkpoint.lock import lock_run
from gan_dist.checkpoint.write import clean_up, set_aside
from gan_dist.data.datasets import describe
from gan_dist.errors import ConfigError, UserError
from gan_dist.kernels.switches import numerics
from gan_dist.parallel.distributed import Distributed
from gan_dist.parallel.signals import StopSignals
from gan_dist.parallel.together import together
from gan_dist.planning.memory import warn_of_memory
from gan_dist.report.log import log_to
from gan_dist.report.plot import plot_run
from gan_dist.settings.config import as_yaml, for_file, load_config
from gan_dist.settings.precision import resolve
from gan_dist.settings.schema import Config, Precision
from gan_dist.wiring.build import WiredRun, build
from gan_dist.wiring.checks import changed_environment, check_names, check_parts, check_resume
from gan_dist.wiring.data import source_of

log = logging.getLogger("gan_dist")


def train(config: Config, signals: StopSignals) -> bool:
    """Train in all processes together; returns True if training is finished, False if a signal stopped it.

    Args:
        config: the settings. `train.precision` "auto" is replaced by the precision that the run gets.
        signals: the active context that receives signals; its first signal stops the run after a few iterations.

    Raises:
        ConfigError: a setting does not fit another setting, the data, or the run that is to be resumed.
        UserError: something outside the program is wrong; the message says what to do.
    """
    started, settings = time.perf_counter(), config.train
    log_to(None)
    check_names(config)
    cpu = settings.device == "cpu" or not torch.cuda.is_available()
    settings.precision = resolve(replace(settings, precision=_saved_precision(config)), on_gpu=not cpu)
    dist = Distributed(settings.precision, cpu, settings.compress_gradients, settings.compile)

    def work() -> bool:
        with numerics(settings.precision, settings.exact):
            finished, run_dir, nimg = _train(config, dist, signals)
        if dist.is_main:
            _last_words(run_dir, nimg, time.perf_counter() - started, finished, dist)
        return finished

    return together(dist, work)


def _train(config: Config, dist: Distributed, signals: StopSignals) -> tuple[bool, Path, int]:
    """Prepare the run directory, build the run and train it; returns (finished, run directory, images seen)."""
    info = dist.from_main(lambda: describe(source_of(config.data)))
    check_parts(config, info, dist)
    locks = []

    def prepare() -> tuple[Path | None, Path]:
        _refuse_another_run(config)
        run_dir = _make_run_dir(config)
        locks.append(lock_run(run_dir))
        clean_up(run_dir)
        log_to(run_dir / "log.txt")
        checkpoint = _find_start(config)
        if checkpoint:
            check_resume(checkpoint, config, info)
        return checkpoint, run_dir

    checkpoint, run_dir = dist.from_main(prepare)
    shape = "x".join(map(str, info.image_shape))
    log.info("%s: %s on %d images of %s", run_dir, config.model.name, info.num_images, shape)
    if dist.is_main:
        warn_of_memory(config, info, dist)
    run = build(config, info, run_dir, checkpoint, dist)
    if dist.is_main:
        # A failed start leaves no config.yaml behind, so it can be repeated with the same directory.
        _write_config(for_file(config), run_dir / "config.yaml")
        if checkpoint:
            set_aside(checkpoint)
    for line in run.summary:
        log.info(line)
    if checkpoint:
        log.info("going on from %s", checkpoint)
        if dist.is_main and (changed := changed_environment(checkpoint, dist)):
            log.warning("%s: the same bits as in one go are not promised", changed)
    return _train_to_the_end(run, run_dir, signals, config.tracking.artifact), run_dir, run.state.nimg


def _train_to_the_end(run: WiredRun, run_dir: Path, signals: StopSignals, upload: bool) -> bool:
    """Run the training loop, then close the progress bar and the trackers, after an error too.

    Returns True if training is finished; if `upload` is True, the trackers then get the last checkpoint.
    """
    try:
        finished = run.train(signals)
    except Exception:
        run.save.wait()
        run.tracker.finish("failed")
        raise
    finally:
        run.bar.close()
    artifact = find_checkpoint(run_dir) if run.dist.is_main and finished and upload else None
    run.tracker.finish("finished" if finished else "stopped", artifact)
    return finished


def _saved_precision(config: Config) -> Precision:
    """Return `train.precision`; if it is "auto" and the run is resumed, return the precision that the run had."""
    saved = Path(config.run.dir) / "config.yaml"
    if config.train.precision != "auto" or config.resume == "never" or not saved.exists():
        return config.train.precision
    return load_config(saved).train.precision


def _refuse_another_run(config: Config) -> None:
    """Raise an error if a new run would use another run's directory, or if the run to resume does not exist."""
    run_dir = Path(config.run.dir)
    if config.resume == "never" and config.run.dir and (run_dir / "config.yaml").exists():
        raise ConfigError(
            f"run.dir={run_dir} already holds a run: go on with it by resume=latest, or name another directory"
        )
    if config.resume not in ("never", "auto") and not run_dir.is_dir():
        raise UserError(f"{run_dir}: no such run directory")


def _make_run_dir(config: Config) -> Path:
    """Make the directory `run.dir`, or a new directory runs/<time>-<name> if `run.dir` is empty."""
    stamp = f"runs/{time.strftime('%Y%m%d-%H%M%S')}-{config.run.name}"
    candidates = (Path(stamp if i == 0 else f"{stamp}-{i}") for i in range(1000))
    run_dir = Path(config.run.dir) if config.run.dir else next(path for path in candidates if not path.exists())
    try:
        run_dir.mkdir(parents=True, exist_ok=bool(config.run.dir))
    except OSError as error:
        raise UserError(f"run.dir={run_dir}: cannot make this directory ({error.strerror})") from None
    return run_dir


def _find_start(config: Config) -> Path | None:
    """Find the checkpoint to resume from; None if the run starts from the beginning."""
    run_dir = Path(config.run.dir)
    if config.resume == "never" or (config.resume == "auto" and not list_checkpoints(run_dir)):
        return None
    return find_checkpoint(run_dir, "latest" if config.resume == "auto" else config.resume)


def _write_config(config: Config, path: Path) -> None:
    """Write the config under a temporary name and then rename it, so that a crash leaves no incomplete file."""
    temporary = path.with_suffix(".tmp")
    try:
        temporary.write_text(as_yaml(config))
        temporary.rename(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None


def _last_words(run_dir: Path, nimg: int, seconds: float, finished: bool, dist: Distributed) -> None:
    """Draw the run's plot, and log how the run ended and where its pictures, metrics and checkpoints are."""
    checkpoints = list_checkpoints(run_dir)
    if finished:
        log.info("finished: %.1f kimg in %.0f s", nimg / 1000, seconds)
    else:
        launcher = "python" if dist.world_size == 1 else "accelerate launch --multi_gpu"
        command = f"{launcher} train.py run.dir={run_dir} resume=latest"
        log.info("stopped at %.1f kimg; go on with: %s", nimg / 1000, command)
    grids = sorted((run_dir / "samples").glob("grid-*.png"))
    if grids:
        log.info("  samples     %s", grids[-1])
    try:
        log.info("  metrics     %s and %s", run_dir / "metrics.jsonl", plot_run(run_dir))
    except OSError as error:  # for example a full disk
        log.warning("could not draw the run: %s", error)
    if checkpoints:
        log.info("  checkpoint  %s", checkpoints[-1])
        log.info("  sample it   gan-dist sample %s --n 64 --grid", run_dir)
