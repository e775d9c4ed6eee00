"""The life of one run: its directory and lock, resuming, its log, the training, and the last words."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path

import torch

from gan_dist.checkpoint.directory import MadeDirectory, has_checkpoints, refuse_strangers_files
from gan_dist.checkpoint.find import find_checkpoint, list_checkpoints
from gan_dist.checkpoint.lock import lock_run
from gan_dist.checkpoint.run_config import Record, write_run_config
from gan_dist.checkpoint.write import clean_up, set_aside
from gan_dist.data.datasets import describe
from gan_dist.errors import CallbackError, ConfigError, UserError
from gan_dist.kernels.switches import LATE, numerics
from gan_dist.last_words import Ending, harmless, say_last_words
from gan_dist.parallel.agreement import agree
from gan_dist.parallel.distributed import Distributed
from gan_dist.parallel.signals import StopRequest
from gan_dist.parallel.together import together
from gan_dist.parts import load_plugins
from gan_dist.planning.memory import warn_of_memory
from gan_dist.planning.settle import settle
from gan_dist.report.log import log_to
from gan_dist.report.versions import record_start
from gan_dist.settings.config import as_yaml, for_file
from gan_dist.settings.precision import resolve
from gan_dist.settings.schema import Config, must_agree
from gan_dist.wiring.build import WiredRun, build
from gan_dist.wiring.checks import check_parts
from gan_dist.wiring.data import registered_dataset, source_of, use_given
from gan_dist.wiring.own_config import Asked, own_config
from gan_dist.wiring.parts import check_names, code_of_parts, environment_of_run, named_parts
from gan_dist.wiring.resume import (
    Before,
    changed_environment,
    check_fit,
    check_settings,
    is_finished,
    read_before,
    say_changes,
)
from gan_dist.wiring.start import check_init

log = logging.getLogger("gan_dist")


def train(asked: Asked, signals: StopRequest) -> bool:
    """Train in all processes together; returns True if training is finished, False if a signal stopped it.

    Args:
        asked: the settings, see `gan_dist.wiring.own_config.resolve_settings`. `train.precision` "auto" is replaced by
            the precision that the run gets, `data.name` by "python" if `asked.dataset` is given, and an empty
            `run.dir` by its directory.
        signals: the active context that receives signals; its first signal stops the run after a few iterations.

    Raises:
        ConfigError: a setting does not fit another setting, the data, or the run that is to be resumed.
        UserError: something outside the program is wrong; the message says what to do.
    """
    config = asked.config
    use_given(config, asked.dataset)
    started, settings = time.perf_counter(), config.train
    log_to(None)
    load_plugins(config.plugins)
    check_names(named_parts(config), lambda: environment_of_run(config))
    if asked.dataset is None:
        asked = replace(asked, dataset=registered_dataset(config.data))
    cpu = settings.device == "cpu" or not torch.cuda.is_available()
    settings.precision = resolve(settings, on_gpu=not cpu)
    agree(must_agree(config) | code_of_parts(config), settings.meet_minutes, signals)
    dist = Distributed(settings.precision, cpu, settings.compress_gradients)
    if settings.exact and dist.is_main and dist.cuda_was_first and not cpu:
        log.warning("%s: the same bits as in a program of its own are not promised", LATE)

    def work() -> bool:
        with numerics(settings.precision, settings.exact), ExitStack() as held:
            ending = _train(asked, dist, signals, held)
        if ending is None:  # the run was finished before
            return True
        if dist.is_main:
            with harmless("the last words are incomplete"):
                say_last_words(ending, time.perf_counter() - started)
        return ending.finished

    return together(dist, work)


def _train(asked: Asked, dist: Distributed, signals: StopRequest, held: ExitStack) -> Ending | None:
    """Prepare the run directory, build the run and train it.

    Args:
        asked: the settings.
        dist: the processes.
        signals: see `train`.
        held: gets the lock of the directory, and so releases it when training has ended.

    Returns:
        How the training has ended; None if nothing was left to do.
    """
    config = asked.config
    with ExitStack() as failed_start:
        run_dir, before, done = dist.from_main(lambda: _prepare(asked, failed_start, held))
        config.run.dir = str(run_dir)
        if done:
            return None
        checkpoint = before.checkpoint if before else None
        info = dist.from_main(lambda: describe(source_of(config.data, asked.dataset)))
        check_parts(config, info, dist)
        check_init(config, goes_on=before is not None)
        chosen = settle(config, info, dist)
        if before:
            dist.from_main(lambda: check_fit(before, config, info))
        if dist.is_main:
            _open_log(asked, run_dir, before)
        shape, model = "x".join(map(str, info.image_shape)), config.model
        names = " against ".join(dict.fromkeys((model.name_of_G, model.name_of_D)))
        log.info("%s: %s on %d images of %s", run_dir, names, info.num_images, shape)
        for sentence in chosen:
            log.info(sentence)
        if dist.is_main:
            warn_of_memory(config, info, dist)
        accepted_key = before.accepted_data[1] if before else ""
        run = build(config, info, run_dir, checkpoint, dist, accepted_key, asked.dataset, asked.callbacks)
        if dist.is_main:
            _begin(asked, run, run_dir, before)
        failed_start.pop_all()
    for line in run.summary:
        log.info(line)
    if checkpoint:
        log.info("going on from %s", checkpoint)
        if dist.is_main and (changed := changed_environment(checkpoint, run.save.facts["environment"])):
            log.warning("%s: the same bits as in one go are not promised", changed)
    first, points = run.state.nimg, info.image_shape[1:] == (1, 1)
    finished = _train_to_the_end(run, run_dir, signals, config.tracking.artifact)
    return Ending(run_dir, finished, first, run.state.nimg, points, dist.world_size, config.plugins)


def _prepare(asked: Asked, failed_start: ExitStack, held: ExitStack) -> tuple[Path, Before | None, bool]:
    """Make and lock the run directory, find the checkpoint, and compare its settings. For the main process.

    Args:
        asked: the settings.
        failed_start: gets what has to be undone if the start fails.
        held: gets the lock, which is released after that.

    Returns:
        The directory; what the run was, None for a new run; and True if nothing is left to do.
    """
    config = asked.config
    _refuse_another_run(config)
    directory = _make_run_dir(config)
    run_dir = directory.path
    failed_start.callback(directory.remove_empty)
    lock = lock_run(run_dir)
    held.callback(lock.release)
    failed_start.callback(lock.release)
    failed_start.callback(directory.remove_files)  # while the lock is held
    failed_start.callback(log_to, None)
    clean_up(run_dir)
    checkpoint = _find_start(config)
    before = read_before(checkpoint, own_config(run_dir)) if checkpoint else None
    if before:
        check_settings(before, config)
    if not before or not is_finished(before.checkpoint, config):
        return run_dir, before, False
    _open_log(asked, run_dir, before)
    log.info("%s is finished: nothing to do; a train.kimg above %g goes on", run_dir, config.train.kimg)
    return run_dir, before, True


def _open_log(asked: Asked, run_dir: Path, before: Before | None) -> None:
    """Open the run's log file, and say what differs from the run so far."""
    log_to(run_dir / "log.txt")
    for note in asked.notes:
        log.warning(note)
    if before:
        say_changes(before, asked.config)


def _begin(asked: Asked, run: WiredRun, run_dir: Path, before: Before | None) -> None:
    """Write the run's `config.yaml`: from now on its directory holds a run. For the main process."""
    facts = run.save.facts
    record = Record(
        starts_from=before.checkpoint.name if before else "",
        file_sha256=asked.file_sha256,
        num_images=facts["num_images"],
        data_key=facts["data_key"],
    )
    write_run_config(run_dir, as_yaml(for_file(asked.config)), record)
    if before:
        set_aside(before.checkpoint)


def _train_to_the_end(run: WiredRun, run_dir: Path, signals: StopRequest, upload: bool) -> bool:
    """Run the training loop, then end the progress bar, the profiler and the trackers, after an error too.

    Returns True if training is finished; if `upload` is True, the trackers then get the last checkpoint.
    """
    if run.dist.is_main:
        captured = "true" if run.trainer.step.graphs else "false"
        modes = {"captured": captured, **run.save.facts["environment"]}
        facts = {"kimg": run.state.nimg / 1000, "processes": run.dist.world_size, **modes}
        record_start(run_dir, facts)
    try:
        finished = run.train(signals)
    except BaseException as error:  # Ctrl-C for the second time too
        run.save.wait()
        run.tracker.finish("failed")
        if isinstance(error, CallbackError) and run.dist.is_main and list_checkpoints(run_dir):
            log.error("%s; the run can go on from %s", error, list_checkpoints(run_dir)[-1])
        raise
    finally:
        with harmless("the progress bar or the profiler did not end"):
            run.close()
    artifact = None
    with harmless("the trackers do not get the model"):
        artifact = find_checkpoint(run_dir) if run.dist.is_main and finished and upload else None
    run.tracker.finish("finished" if finished else "stopped", artifact)
    return finished


def _refuse_another_run(config: Config) -> None:
    """Refuse to begin a new run in a directory with files of another run, or to go on with a run that is not there.

    Nothing is changed in the directory.
    """
    if not config.run.dir:
        return
    run_dir = Path(config.run.dir)
    if config.resume not in ("never", "auto"):
        if not run_dir.is_dir():
            raise UserError(f"{run_dir}: no such run directory")
    elif not (has_checkpoints(run_dir) or own_config(run_dir)):
        refuse_strangers_files(run_dir)
    elif config.resume == "never":
        raise ConfigError(
            f"run.dir={run_dir} already holds a run: go on with it by resume=latest, or name another directory"
        )


def _make_run_dir(config: Config) -> MadeDirectory:
    """Make the directory `run.dir`, or a new directory runs/<time>-<name> if `run.dir` is empty."""
    if config.run.dir:
        return MadeDirectory(Path(config.run.dir), exist_ok=True)
    stamp = f"runs/{time.strftime('%Y%m%d-%H%M%S')}-{config.run.name}"
    for number in count():
        with suppress(FileExistsError):
            return MadeDirectory(Path(f"{stamp}-{number}" if number else stamp), exist_ok=False)
    raise AssertionError


def _find_start(config: Config) -> Path | None:
    """Find the checkpoint to resume from; None if the run starts from the beginning."""
    run_dir = Path(config.run.dir)
    if config.resume == "never" or (config.resume == "auto" and not list_checkpoints(run_dir)):
        return None
    return find_checkpoint(run_dir, "latest" if config.resume == "auto" else config.resume)
