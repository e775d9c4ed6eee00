"""What the commands do: `train` starts or resumes a run, `evaluate` measures checkpoints, `prefetch` downloads files.

This file also manages the run directory, and turns errors of libraries into advice for the user.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from gan_dist.advice import advise
from gan_dist.checkpoint.find import find_checkpoint, list_checkpoints, read_facts
from gan_dist.checkpoint.lock import lock_run
from gan_dist.checkpoint.write import clean_up, set_aside
from gan_dist.data.datasets import describe, load_dataset
from gan_dist.data.in_memory import ImageTensor, count_readable
from gan_dist.data.shared import load_shared
from gan_dist.errors import ConfigError, UserError
from gan_dist.kernels.layout import adapt
from gan_dist.kernels.switches import numerics
from gan_dist.metrics import Evaluator
from gan_dist.metrics.checkpoints import evaluate_checkpoints
from gan_dist.parallel.distributed import Distributed
from gan_dist.parallel.signals import StopSignals
from gan_dist.report.log import log_to
from gan_dist.report.plot import plot_run
from gan_dist.report.tracking import read_metrics
from gan_dist.settings.config import as_yaml, for_file, load_config
from gan_dist.settings.precision import resolve
from gan_dist.settings.schema import Config, Precision
from gan_dist.wiring.build import WiredRun, build
from gan_dist.wiring.checks import changed_environment, check_names, check_parts, check_resume
from gan_dist.wiring.data import cache_dir, class_probabilities, source_of, stage_dir
from gan_dist.wiring.kinds import kind_of
from gan_dist.wiring.networks import generator_of

T = TypeVar("T")

log = logging.getLogger("gan_dist")


# ----------------------------------------------------------------------------------------------------------------------
# Training


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

    return _together(dist, work)


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

    log_to(None)
    checkpoint, run_dir = dist.from_main(prepare)
    shape = "x".join(map(str, info.image_shape))
    log.info("%s: %s on %d images of %s", run_dir, config.model.name, info.num_images, shape)
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


# ----------------------------------------------------------------------------------------------------------------------
# Errors


def _together(dist: Distributed, work: Callable[[], T]) -> T:
    """Call `work` in all processes. If it fails because another process failed, raise an error that says so."""
    try:
        result = work()
        dist.end()
    except Exception as error:
        raise dist.failure(advise(error)) from error
    return result


# ----------------------------------------------------------------------------------------------------------------------
# Evaluating checkpoints, and downloading


def evaluate(
    config: Config, run_dir: Path, checkpoint: Path | None, results: Path, store: Callable[[dict[str, Any]], None]
) -> None:
    """Measure one checkpoint, or all checkpoints of a run. All processes call this function together.

    Args:
        config: the settings; the sections `metrics` and `data` say how to measure.
        run_dir: the run directory.
        checkpoint: the checkpoint to measure; None for all without a result of the same protocol in `results`.
        results: the file with earlier results, one JSON object per line.
        store: the main process calls it with each result.

    Raises:
        UserError: the data, the feature extractor or a checkpoint cannot be read.
    """
    check_names(config)
    dist = Distributed("fp32", cpu=config.train.device == "cpu")

    def work() -> None:
        checkpoints, known = [checkpoint] if checkpoint else [], []
        if not checkpoint:
            checkpoints = dist.from_main(lambda: list_checkpoints(run_dir))
            known = dist.from_main(lambda: read_metrics(results))
        with numerics("fp32", exact=True):
            evaluator = _make_evaluator(config, dist)
            for result in evaluate_checkpoints(checkpoints, evaluator, load, known):
                if dist.is_main:
                    store(result)

    def load(path: Path) -> tuple[nn.Module, float]:
        # The network gets the memory layout that it has in training, so that both give bit-identical results.
        G = adapt(generator_of(path).to(dist.device), config.train.precision)
        return G, read_facts(path)["nimg"] / 1000

    _together(dist, work)


def _make_evaluator(config: Config, dist: Distributed) -> Evaluator:
    source, kind = source_of(config.data), kind_of(config.data)
    info = dist.from_main(lambda: describe(source))
    kind.check_metrics(config, info)
    dataset, _ = load_shared(source, info, dist, stage_dir())
    return kind.make_evaluator(config, info, dataset, class_probabilities(dataset, info, config), dist)


def prefetch(config: Config) -> Iterator[str]:
    """Download and check everything that a run needs. Yields a line about the data set and one about the extractor.

    Raises:
        UserError: a download failed, or a file is damaged.
    """
    check_names(config)
    dist, source, kind = Distributed("fp32", cpu=True), source_of(config.data), kind_of(config.data)
    info = describe(source)
    check_parts(config, info, dist)
    dataset = load_dataset(source, info)
    good = len(dataset) if isinstance(dataset, ImageTensor) else count_readable(dataset)
    if good != info.num_images and config.data.name != "folder":
        raise UserError(f"data.name={config.data.name}: only {good} of {info.num_images} images can be read")
    yield f"data     {config.data.name}: {kind.describe(config, info, good)}"
    if config.metrics.every_kimg and (extractor := kind.prepare_extractor(config, info, dataset, dist)):
        yield f"metrics  {extractor} in {cache_dir().resolve()}"
