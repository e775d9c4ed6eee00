"""`gan-dist train [CONFIG.yaml] [key.sub=value …]`."""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from gan_dist.data import describe
from gan_dist.errors import ConfigError, UserError
from gan_dist.parallel.signals import StopSignals
from gan_dist.settings.config import as_yaml, for_file, load_config
from gan_dist.settings.precision import resolve
from gan_dist.settings.schema import Config, Precision, settings_help

if TYPE_CHECKING:
    from gan_dist.parallel.distributed import Distributed

USAGE = """\
usage: python train.py [CONFIG.yaml] [key.sub=value ...]
       gan-dist train [CONFIG.yaml] [key.sub=value ...]

Without a CONFIG the defaults train a class-conditional GAN on handwritten digits; with run.dir and resume, the
config of that run is taken. An override beats the file, the file beats the defaults.

  python train.py configs/dcgan_fashion_mnist.yaml train.kimg=500 data.root=/path
  python train.py run.dir=runs/mine resume=latest train.kimg=1000

Exit status: 0 finished; 75 stopped by a signal, resumable; 2 bad settings; 1 failed.

Settings and their defaults:
"""

FINISHED, STOPPED = 0, 75  # 75: sysexits.h's EX_TEMPFAIL, try again

log = logging.getLogger("gan_dist")


def train(arguments: list[str]) -> int:
    """Parse, check, build, run, and say where everything is."""
    if any(argument in ("-h", "--help") for argument in arguments):
        print(USAGE + settings_help())
        return 0
    started = time.perf_counter()
    config = read_config(arguments)
    with StopSignals() as signals:
        return _train(config, signals, started)


def _train(config: Config, signals: StopSignals, started: float) -> int:
    import torch  # it takes some seconds: after what can be refused without

    from gan_dist.kernels.switches import numerics
    from gan_dist.parallel.distributed import Distributed

    settings = config.train
    cpu = settings.device == "cpu" or not torch.cuda.is_available()
    settings.precision = resolve(replace(settings, precision=_saved_precision(config)), on_gpu=not cpu)
    dist = Distributed(settings.precision, cpu, settings.compress_gradients, settings.compile)
    try:
        with numerics(settings.precision, settings.exact):
            finished, run_dir, nimg = _run(config, dist, signals)
        if dist.is_main:
            launcher = "python" if dist.world_size == 1 else "accelerate launch --multi_gpu"
            _report(run_dir, nimg, time.perf_counter() - started, finished, launcher)
        dist.end()
    except Exception as error:
        raise dist.failure(_in_words(error)) from error
    return FINISHED if finished else STOPPED


def _saved_precision(config: Config) -> Precision:
    """`train.precision`; where that is "auto", a run that goes on keeps what it has taken on the machine before."""
    saved = Path(config.run.dir) / "config.yaml"
    if config.train.precision != "auto" or config.resume == "never" or not saved.exists():
        return config.train.precision
    return load_config(saved).train.precision


def _run(config: Config, dist: Distributed, signals: StopSignals) -> tuple[bool, Path, int]:
    """Everything between starting the processes and the last words: (finished, run directory, images seen)."""
    from gan_dist.checkpoint.files import clean_up, find_checkpoint, set_aside
    from gan_dist.checkpoint.lock import lock_run
    from gan_dist.wiring.build import build
    from gan_dist.wiring.checks import changed_environment, check_parts, check_resume

    info = dist.from_main(lambda: describe(config.data))
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
        # Only now does the directory hold a run: what failed before can be mended and started again in the same place.
        _write_config(for_file(config), run_dir / "config.yaml")
        if checkpoint:
            set_aside(checkpoint)
    for line in run.summary:
        log.info(line)
    if checkpoint:
        log.info("going on from %s", checkpoint)
        if dist.is_main and (changed := changed_environment(checkpoint, dist)):
            log.warning("%s: the same bits as in one go are not promised", changed)
    try:
        finished = run.trainer.run(signals)
    except Exception:
        run.save.wait()
        run.tracker.finish("failed")
        raise
    finally:
        run.bar.close()
    artifact = find_checkpoint(run_dir) if dist.is_main and finished and config.tracking.artifact else None
    run.tracker.finish("finished" if finished else "stopped", artifact)
    return finished, run_dir, run.state.nimg


def _in_words(error: Exception) -> Exception:
    """What the user can do about errors that libraries raise in words of their own."""
    import torch

    line = " ".join(str(error).split())[:150]
    if isinstance(error, torch.OutOfMemoryError):
        return UserError(f"the GPU's memory is full ({line}); set train.micro_batch_size or metrics.batch_size")
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return UserError(
            f"train.compile=true: torch.compile failed ({line}); it needs a C++ compiler, else set it to false"
        )
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error)):
        return UserError(f"the memory is full ({line}); make the networks, batches or data.memory_gib smaller")
    if isinstance(error, OSError) and error.filename:  # a connection has none
        return UserError(f"{error.filename}: {error.strerror}")
    if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
        return UserError(f"a data worker was killed ({line}); if memory was short, lower data.workers; then resume")
    return error


def read_config(arguments: list[str]) -> Config:
    """The config file, if one is named, else that of the run to go on with, else the defaults; and the overrides."""
    files = [argument for argument in arguments if "=" not in argument]
    overrides = [argument for argument in arguments if "=" in argument]
    if len(files) > 1:
        raise ConfigError(f"one config file at a time, not {' '.join(files)}; overrides are written key.sub=value")
    if files and files[0].startswith("-"):
        raise ConfigError(f"unknown option {files[0]}; settings are written key.sub=value, --help lists them")
    path = Path(files[0]) if files else None
    config = load_config(path, overrides)
    saved = Path(config.run.dir) / "config.yaml"
    if path is None and config.resume != "never" and saved.exists():
        config = load_config(saved, overrides)
    config.run.name = config.run.name or (path.stem if path else config.data.name)
    return config


def _refuse_another_run(config: Config) -> None:
    """Never write to a directory that holds a run which is not to go on; never begin one that is said to be there."""
    run_dir = Path(config.run.dir)
    if config.resume == "never" and config.run.dir and (run_dir / "config.yaml").exists():
        raise ConfigError(
            f"run.dir={run_dir} already holds a run: go on with it by resume=latest, or name another directory"
        )
    if config.resume not in ("never", "auto") and not run_dir.is_dir():
        raise UserError(f"{run_dir}: no such run directory")


def _find_start(config: Config) -> Path | None:
    """The checkpoint to go on from, if any."""
    from gan_dist.checkpoint.files import find_checkpoint, list_checkpoints

    run_dir = Path(config.run.dir)
    if config.resume == "never" or (config.resume == "auto" and not list_checkpoints(run_dir)):
        return None
    return find_checkpoint(run_dir, "latest" if config.resume == "auto" else config.resume)


def _write_config(config: Config, path: Path) -> None:
    """Whole or not at all."""
    temporary = path.with_suffix(".tmp")
    try:
        temporary.write_text(as_yaml(config))
        temporary.rename(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None


def _make_run_dir(config: Config) -> Path:
    """Make `run.dir`, or a fresh runs/<time>-<name>."""
    stamp = f"runs/{time.strftime('%Y%m%d-%H%M%S')}-{config.run.name}"
    candidates = (Path(stamp if i == 0 else f"{stamp}-{i}") for i in range(1000))
    run_dir = Path(config.run.dir) if config.run.dir else next(path for path in candidates if not path.exists())
    try:
        run_dir.mkdir(parents=True, exist_ok=bool(config.run.dir))
    except OSError as error:
        raise UserError(f"run.dir={run_dir}: cannot make this directory ({error.strerror})") from None
    return run_dir


def log_to(path: Path | None) -> None:
    """Messages to the terminal, above the progress line, and with their time to a file; None: warnings alone."""
    logging.raiseExceptions = False  # a line that a full disk swallows is not worth a traceback
    log.handlers = [TerminalHandler()]
    log.setLevel(logging.INFO if path else logging.WARNING)
    if path:
        file = logging.FileHandler(path)
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(file)


class TerminalHandler(logging.Handler):
    """Prints through tqdm, which keeps its line whole."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        tqdm.write(prefix + record.getMessage(), file=sys.stdout)


def _report(run_dir: Path, nimg: int, seconds: float, finished: bool, launcher: str) -> None:
    from gan_dist.checkpoint.files import list_checkpoints
    from gan_dist.report.plot import plot_run

    checkpoints = list_checkpoints(run_dir)
    if finished:
        log.info("finished: %.1f kimg in %.0f s", nimg / 1000, seconds)
    else:
        command = f"{launcher} train.py run.dir={run_dir} resume=latest"
        log.info("stopped at %.1f kimg; go on with: %s", nimg / 1000, command)
    grids = sorted((run_dir / "samples").glob("grid-*.png"))
    if grids:
        log.info("  samples     %s", grids[-1])
    try:
        log.info("  metrics     %s and %s", run_dir / "metrics.jsonl", plot_run(run_dir))
    except OSError as error:  # a full disk
        log.warning("could not draw the run: %s", error)
    if checkpoints:
        log.info("  checkpoint  %s", checkpoints[-1])
        log.info("  sample it   gan-dist sample %s --n 64 --grid", run_dir)
