"""Build a run from its config: load the data, make the networks, the training loop and the callbacks."""

from __future__ import annotations

import logging
import math
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from gan_dist.checkpoint.find import read_facts
from gan_dist.checkpoint.restore import restore
from gan_dist.checkpoint.state import State
from gan_dist.data import DataInfo
from gan_dist.data.folder import ImageFiles
from gan_dist.data.in_memory import Images, ImageTensor
from gan_dist.data.loader import make_loader, read_batches
from gan_dist.data.shared import load_shared, shrink
from gan_dist.data.waiting import Patience
from gan_dist.data.workers import PREFETCH, fitting_prefetch
from gan_dist.engine.batches import Batches, Stream
from gan_dist.engine.callbacks.evaluate import Evaluate
from gan_dist.engine.callbacks.grid import SampleGrid
from gan_dist.engine.callbacks.profile import Profile
from gan_dist.engine.callbacks.progress import LogProgress, ProgressBar
from gan_dist.engine.callbacks.save import Retention, SaveCheckpoint
from gan_dist.engine.clock import Clock
from gan_dist.engine.growth import Stage
from gan_dist.engine.health import Health
from gan_dist.engine.recovery import Recovery
from gan_dist.engine.stats import RunningMeans
from gan_dist.engine.step import Alternation
from gan_dist.engine.trainer import Callback, Trainer
from gan_dist.parallel.distributed import Distributed
from gan_dist.parallel.signals import StopSignals
from gan_dist.parallel.stop import StopAgreement
from gan_dist.report.trackers import TrackedRun, make_trackers
from gan_dist.report.tracking import Tracker, Trackers
from gan_dist.settings.config import as_dict, as_yaml, for_file
from gan_dist.settings.schema import Config
from gan_dist.wiring.checks import check_content
from gan_dist.wiring.data import class_probabilities, source_of, stage_dir
from gan_dist.wiring.iteration import last_stage, make_step, nimg_of, total_nimg
from gan_dist.wiring.kinds import kind_of
from gan_dist.wiring.networks import make_state

log = logging.getLogger(__name__)


@dataclass
class WiredRun:
    """A run that is ready to start.

    Attributes:
        trainer: the training loop.
        state: the state of the run.
        tracker: records metrics and pictures; the caller must call its `finish`.
        bar: the progress bar; the caller must close it.
        save: writes the checkpoints.
        dist: the processes.
        stop: tells whether to stop.
        summary: three lines for the log about processes, batches and networks.
    """

    trainer: Trainer
    state: State
    tracker: Tracker
    bar: ProgressBar
    save: SaveCheckpoint
    dist: Distributed
    stop: StopAgreement
    summary: list[str]

    def train(self, signals: StopSignals) -> bool:
        """Train; returns True if training is finished, False if a signal to one of the processes stopped it."""
        self.stop.signals = signals
        return self.trainer.run(self.stop)


def build(config: Config, info: DataInfo, run_dir: Path, checkpoint: Path | None, dist: Distributed) -> WiredRun:
    """Build a run. All processes call this function together.

    Args:
        config: the settings, which `gan_dist.wiring.checks` has checked.
        info: the data set; see `gan_dist.data.datasets.describe`.
        run_dir: the run directory, which exists.
        checkpoint: the checkpoint to resume from; None for a new run.
        dist: the processes.

    Raises:
        UserError: the data or the checkpoint cannot be read, or the checkpoint belongs to other data.
    """
    dataset, key = load_shared(source_of(config.data), info, dist, stage_dir())
    if isinstance(dataset, ImageTensor):
        dataset = dataset.on(dist.device)
    state = make_state(config, info, dist)
    if checkpoint:
        check_content(checkpoint, key)
        restore(checkpoint, state)
    class_probs = class_probabilities(dataset, info, config)
    stats, clock, stop = RunningMeans(dist), Clock(), StopAgreement(dist)
    step = make_step(config, state, dist, stats, class_probs)
    batches = _batches(config, info, dataset, step, stop, dist)
    tracker = _trackers(config, run_dir, state.nimg) if dist.is_main else Trackers([])
    bar = ProgressBar(state.nimg, total_nimg(config), dist)
    save = _save(config, _facts(config, info, key, dist), run_dir, dist)
    save.unmeasured = checkpoint is not None and read_facts(checkpoint).get("unmeasured") is True
    kind = kind_of(config.data)
    if config.sample.every_kimg and state.nimg == 0:
        tracker.image(0, "real", kind.real_picture(config, info, dataset))
    log_every = nimg_of(config.log.every_kimg)
    picture = kind.make_picture(config, class_probs, dist)
    callbacks: list[Callback] = [
        bar,
        LogProgress(log_every, state.nimg, total_nimg(config), stats, tracker, bar, clock, dist),
        SampleGrid(nimg_of(config.sample.every_kimg), picture, tracker, clock),
        save,  # an evaluation can take longer than SIGTERM's grace period, so the checkpoint is saved first
    ]
    if config.metrics.every_kimg:
        evaluator = kind.make_evaluator(config, info, dataset, class_probs, dist)
        keep_best = config.checkpoint.keep_best and config.checkpoint.every_kimg > 0
        every = nimg_of(config.metrics.every_kimg)
        callbacks.append(Evaluate(every, evaluator, tracker, clock, dist, save, keep_best, stop))
    if config.train.profile and dist.is_main:
        callbacks.append(Profile(run_dir / "trace.json"))
    recovery = _recovery(config, state, save, [tracker, stats, batches], dist)
    trainer = Trainer(state, step, batches, callbacks, save, recovery, clock, total_nimg(config))
    summary = _summary(config, state, step.growth.batch_size, dist)
    return WiredRun(trainer, state, tracker, bar, save, dist, stop, summary)


def _batches(
    config: Config, info: DataInfo, dataset: Images, step: Alternation, stop: StopAgreement, dist: Distributed
) -> Batches:
    """Make the stream of training batches. The early stages of progressive growing get smaller images."""
    source, last = source_of(config.data), last_stage(step.state)
    n_critic, workers, say = config.train.n_critic, config.data.workers, _once(dist)

    def open_stream(stage: Stage, nimg: int, seed: int) -> Stream:
        images = shrink(dataset, 2 ** (last - stage.number), source, info, dist)
        prefetch = PREFETCH
        if isinstance(images, ImageFiles):
            share = math.prod(images.image_shape) * stage.batch_size // dist.world_size
            # On a CPU the batches stay in shared memory until they are used; Accelerate fetches one more.
            held = 2 + (stop.lag + 1) * n_critic * (dist.device.type == "cpu")
            prefetch, message = fitting_prefetch(share, workers, held, dist.local_world_size)
            if message:
                say("shared memory", message)

        def open_loader(first: int) -> DataLoader:
            return dist.prepare_loader(make_loader(images, stage.batch_size, seed, first, workers, prefetch))

        return read_batches(open_loader, nimg, stage.batch_size, Patience(lambda: stop.requested, say))

    return Batches(step.growth, open_stream, n_critic)


def _once(dist: Distributed) -> Callable[[str, str], None]:
    """Return a function of a key and a message, which logs the message in the first process that has it."""
    keys: set[str] = set()

    def say(key: str, message: str) -> None:
        if key in keys:
            return
        keys.add(key)
        if not dist.is_main:
            time.sleep(2)  # the main process comes first, because it writes log.txt
        if dist.first(key):
            where = f"rank {dist.rank} on {socket.gethostname()}: " if dist.several else ""
            log.warning("%s%s", where, message)

    return say


def _facts(config: Config, info: DataInfo, data_key: str, dist: Distributed) -> dict[str, Any]:
    """Return what each checkpoint records about the data and the machine, in addition to the state of the run.

    With it the networks can be built without the data, and a resumed run can check that data and machine are the same.
    """
    return {
        "image_shape": list(info.image_shape),
        "num_classes": info.num_classes if config.model.conditional else 0,
        "num_images": info.num_images,
        "data_key": data_key,
        "environment": dist.environment,
    }


def _save(config: Config, facts: dict[str, Any], run_dir: Path, dist: Distributed) -> SaveCheckpoint:
    kept = config.checkpoint
    retention = Retention(kept.keep, nimg_of(kept.keep_every_kimg), kept.keep_best)
    return SaveCheckpoint(nimg_of(kept.every_kimg), run_dir, facts, as_yaml(for_file(config)), retention, dist)


def _recovery(
    config: Config, state: State, save: SaveCheckpoint, rewindable: Sequence[Any], dist: Distributed
) -> Recovery:
    """Make the handler of non-finite gradients.

    If a run skips single steps, as every run in fp16 does, it goes back or ends only after 20 skipped steps in a row.
    """
    policy = config.train.on_nonfinite
    skip = policy == "skip"
    health = Health(
        patience=20 if skip or state.scalers else 1,
        warn=log.warning if skip and dist.is_main and not state.scalers else None,
    )
    return Recovery(state, health, save, rewindable, dist, policy, config.train.max_rollbacks)


def _trackers(config: Config, run_dir: Path, nimg: int) -> Trackers:
    tracking = config.tracking
    run = TrackedRun(run_dir, nimg, as_dict(config), tracking.wandb, tracking.project, tracking.entity)
    return make_trackers(run)


def _summary(config: Config, state: State, batch: int, dist: Distributed) -> list[str]:
    """Return three lines about processes, batches and networks; with progressive growing, of the current stage.

    Args:
        config: the settings.
        state: the networks.
        batch: global batch.
        dist: the processes.
    """
    parameters = {name: list(getattr(state, name).parameters()) for name in ("G", "D")}
    sizes = {name: sum(p.numel() for p in found) for name, found in parameters.items()}
    trained = {name: sum(p.numel() for p in found if p.requires_grad) for name, found in parameters.items()}
    width = 2 if config.train.compress_gradients else torch.finfo(dist.dtype).bits // 8
    sent = (trained["G"] + config.train.n_critic * trained["D"]) * width if dist.several else 0
    share, nodes = batch // dist.world_size, dist.world_size // dist.local_world_size
    meaning = {"tf32": ", which is fp32 on a CPU"} if dist.device.type == "cpu" else {}
    where = f"backend {dist.backend}, {dist.device.type}, precision {dist.precision}{meaning.get(dist.precision, '')}"
    return [
        f"{dist.world_size} process(es) on {nodes} node(s), {where}",
        f"global batch {batch}, {share} per process",
        f"G has {sizes['G']:,} parameters, D {sizes['D']:,}; each iteration all-reduces {sent:,} bytes of gradients",
    ]
