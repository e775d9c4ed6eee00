"""Build a run from its config: load the data, make the networks, the training loop and the callbacks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gan_dist.checkpoint.find import read_facts
from gan_dist.checkpoint.restore import restore
from gan_dist.checkpoint.state import State
from gan_dist.data import DataInfo
from gan_dist.data.in_memory import Images, ImageTensor
from gan_dist.data.key import reference_key
from gan_dist.data.listing import describe_classes
from gan_dist.data.shared import load_shared
from gan_dist.engine.callbacks.evaluate import Evaluate
from gan_dist.engine.callbacks.grid import SampleGrid
from gan_dist.engine.callbacks.profile import Profile
from gan_dist.engine.callbacks.progress import LogProgress, ProgressBar
from gan_dist.engine.callbacks.save import Retention, SaveCheckpoint
from gan_dist.engine.callbacks.unreadable import ReportUnreadable
from gan_dist.engine.clock import Clock
from gan_dist.engine.health import Health
from gan_dist.engine.recovery import Recovery
from gan_dist.engine.stats import RunningMeans
from gan_dist.engine.step import Alternation
from gan_dist.engine.trainer import Callback, Trainer
from gan_dist.metrics import Evaluator, NoFigure, Reference
from gan_dist.parallel.distributed import Distributed
from gan_dist.parallel.signals import StopRequest
from gan_dist.parallel.stop import StopAgreement
from gan_dist.report.trackers import TrackedRun, make_trackers
from gan_dist.report.tracking import Tracker, Trackers
from gan_dist.settings.config import as_yaml, for_file
from gan_dist.settings.schema import Config
from gan_dist.wiring.batches import make_batches
from gan_dist.wiring.data import absolute_paths, class_probabilities, keep_classes, source_of, stage_dir
from gan_dist.wiring.figures import figures_of
from gan_dist.wiring.iteration import make_step, nimg_of, total_nimg
from gan_dist.wiring.kinds import kind_of
from gan_dist.wiring.networks import make_state
from gan_dist.wiring.parts import code_of_parts, users_callbacks
from gan_dist.wiring.resume import check_same_content
from gan_dist.wiring.start import start_from

log = logging.getLogger(__name__)


@dataclass
class WiredRun:
    """A run that is ready to start.

    Attributes:
        trainer: the training loop.
        state: the state of the run.
        tracker: records metrics and pictures; the caller must call its `finish`.
        track: starts the trackers, when nothing can refuse the run any more. W&B would keep a refused run.
        bar: the progress bar.
        save: writes the checkpoints.
        dist: the processes.
        stop: tells whether to stop.
        summary: lines for the log about classes, processes, batches and networks.
    """

    trainer: Trainer
    state: State
    tracker: Tracker
    track: Callable[[], None]
    bar: ProgressBar
    save: SaveCheckpoint
    dist: Distributed
    stop: StopAgreement
    summary: list[str]

    def train(self, signals: StopRequest) -> bool:
        """Start the trackers, then train.

        Returns True if training is finished, False if a signal to one of the processes stopped it.
        """
        self.track()
        self.stop.signals = signals
        graphs = self.trainer.step.graphs
        with graphs.capture.on_stream() if graphs else nullcontext():
            return self.trainer.run(self.stop)

    def close(self) -> None:
        """End the progress bar, so that the terminal can be used again, and the profiler. Call this after `train`."""
        self.bar.close()
        for callback in self.trainer.callbacks:
            if isinstance(callback, Profile):
                callback.close()


def build(
    config: Config,
    info: DataInfo,
    run_dir: Path,
    checkpoint: Path | None,
    dist: Distributed,
    accepted_key: str = "",
    given: Any = None,
    callbacks: Sequence[Any] = (),
) -> WiredRun:
    """Build a run. All processes call this together. The only file that it may write is the metrics' classifier.

    Args:
        config: the settings, which `gan_dist.wiring.checks` has checked.
        info: the data set; see `gan_dist.data.datasets.describe`.
        run_dir: the run directory, which exists.
        checkpoint: the checkpoint to resume from; None for a new run.
        dist: the processes.
        accepted_key: key of other data that an earlier start from the checkpoint was allowed; "" for none.
        given, callbacks: the data set (None for none) and the callbacks that were given from Python.

    Raises:
        UserError: the data or the checkpoint cannot be read, or the checkpoint belongs to other data.
    """
    before = read_facts(checkpoint) if checkpoint else None
    info, dataset, key = _load(config, info, before, given, dist)
    state = make_state(config, info, dist)
    carried = _carried(before) if before else {"started_from": start_from(config, info, state, dist), "callbacks": {}}
    if checkpoint:
        _say(dist, lambda: check_same_content(checkpoint, key, accepted_key, config, dataset, info))
    class_probs = class_probabilities(dataset, info, config)
    evaluator = _evaluator(config, info, dataset, key, class_probs, run_dir, dist)
    figures = figures_of(evaluator, checkpoint, dist)
    if checkpoint:
        restore(checkpoint, state, figures["protocol"])
    stats, clock, stop = RunningMeans(dist), Clock(), StopAgreement(dist)
    step = make_step(config, state, dist, stats, class_probs)
    batches = make_batches(config, info, dataset, step, stop, dist)
    tracker, track = _tracking(config, info, dataset, run_dir, state.nimg, dist)
    bar = ProgressBar(state.nimg, total_nimg(config), dist)
    facts = _facts(config, info, key, step, dist) | figures | carried
    save = _save(config, facts, run_dir, dist, unmeasured=before is not None and before["unmeasured"])
    log_every = nimg_of(config.log.every_kimg)
    picture = kind_of(config.data).make_picture(config, info, class_probs, dist)
    users = users_callbacks(config, callbacks, run_dir, tracker, save.facts, dist)
    called: list[Callback] = [
        bar,
        LogProgress(log_every, state.nimg, total_nimg(config), stats, tracker, bar, clock, dist),
        SampleGrid(nimg_of(config.sample.every_kimg), state.nimg, picture, tracker, clock),
        ReportUnreadable(log_every or 1000, dataset, info.num_classes, facts, run_dir / "unreadable.txt", dist),
        *users,  # before the checkpoint, which has their state
        save,  # an evaluation can take longer than SIGTERM's grace period, so the checkpoint is saved first
    ]
    if evaluator:
        called.append(Evaluate(nimg_of(config.metrics.every_kimg), evaluator, tracker, clock, dist, save, stop))
    called += [Profile(run_dir / "trace.json")] if config.train.profile and dist.is_main else []
    told = [tracker, stats, batches, *users, *([step.graphs] if step.graphs else [])]
    recovery = _recovery(config, state, save, told, dist)
    trainer = Trainer(state, step, batches, called, save, recovery, clock, total_nimg(config))
    return WiredRun(trainer, state, tracker, track, bar, save, dist, stop, _summary(config, info, step, dist))


def _load(
    config: Config, info: DataInfo, before: dict[str, Any] | None, given: Any, dist: Distributed
) -> tuple[DataInfo, Images, str]:
    """Load the data set, and return its properties with the classes in the order of the run, the data, and their key.

    `before` is what the run's checkpoint says; None for a new run.
    """
    info = keep_classes(info, before["class_names"]) if before else info
    dataset, key = load_shared(source_of(config.data, given), info, dist, stage_dir())
    return info, dataset.on(dist.device) if isinstance(dataset, ImageTensor) else dataset, key


def _carried(facts: dict[str, Any]) -> dict[str, Any]:
    """Return what checkpoints take over from the one before."""
    return {name: facts[name] for name in ("started_from", "callbacks")}


def _say(dist: Distributed, check: Callable[[], list[str]]) -> None:
    """Make a check in the main process, and log what it returns."""
    for note in dist.from_main(check):
        if dist.is_main:
            log.warning(note)


def _evaluator(
    config: Config,
    info: DataInfo,
    dataset: Images,
    key: str,
    class_probs: Tensor | None,
    run_dir: Path,
    dist: Distributed,
) -> Evaluator | None:
    """Make the evaluator of a run; None, with a warning, if there can be no meaningful figure."""
    if not config.metrics.every_kimg:
        return None
    measured = dist.from_main(lambda: reference_key(dataset, key))
    try:
        reference = Reference(dataset, info, measured, class_probs, config.data.workers)
        return kind_of(config.data).make_evaluator(config, reference, run_dir, dist)
    except NoFigure as error:
        if dist.is_main:
            log.warning("no figures are measured: %s", error)
        return None


def _facts(config: Config, info: DataInfo, data_key: str, step: Alternation, dist: Distributed) -> dict[str, Any]:
    """Return what each checkpoint records about the data and the machine, in addition to the state of the run.

    With it the networks can be built without the data, a resumed run can check that data and machine are the same, and
    an evaluation that is started in another directory finds the files.
    """
    return {
        "paths": absolute_paths(config),
        "image_shape": list(info.image_shape),
        "num_classes": info.num_classes if config.model.conditional else 0,
        "class_names": list(info.class_names),
        "num_images": info.num_images,
        "data_key": data_key,
        "unreadable": [],  # `ReportUnreadable` adds the images that cannot be read
        "unmeasured": False,
        "environment": {
            **dist.environment,
            "compiled": str(step.update_D.compiled is not None).lower(),
            **code_of_parts(config),
        },
    }


def _save(config: Config, facts: dict[str, Any], run_dir: Path, dist: Distributed, unmeasured: bool) -> SaveCheckpoint:
    kept = config.checkpoint
    retention = Retention(kept.keep, nimg_of(kept.keep_every_kimg), kept.keep_best)
    save = SaveCheckpoint(nimg_of(kept.every_kimg), run_dir, facts, as_yaml(for_file(config)), retention, dist)
    save.unmeasured = unmeasured
    return save


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


def _tracking(
    config: Config, info: DataInfo, dataset: Images, run_dir: Path, nimg: int, dist: Distributed
) -> tuple[Trackers, Callable[[], None]]:
    """Return the run's trackers, and a function that starts them. At the start of a run they get a real picture."""
    tracking, trackers = config.tracking, Trackers([])
    known = asdict(replace(config, allow_changes=[]))
    if info.class_names:
        known["class_names"] = list(info.class_names)
    shows_real = dist.is_main and config.sample.every_kimg and nimg == 0
    real = kind_of(config.data).real_picture(config, info, dataset) if shows_real else None

    def start() -> None:
        if dist.is_main:
            run = TrackedRun(run_dir, nimg, known, tracking.wandb, tracking.project, tracking.entity)
            trackers.trackers = make_trackers(run, tracking.extra)
        if real is not None:
            trackers.image(0, "real", real)

    return trackers, start


def _summary(config: Config, info: DataInfo, step: Alternation, dist: Distributed) -> list[str]:
    """Return lines about classes with names, processes, batches and networks; with growing, of the current stage."""
    batch = step.growth.batch_size
    parameters = {name: list(getattr(step.state, name).parameters()) for name in ("G", "D")}
    sizes = {name: sum(p.numel() for p in found) for name, found in parameters.items()}
    trained = {name: sum(p.numel() for p in found if p.requires_grad) for name, found in parameters.items()}
    width = 2 if config.train.compress_gradients else torch.finfo(dist.dtype).bits // 8
    sent = (trained["G"] + config.train.n_critic * trained["D"]) * width if dist.several else 0
    share, nodes = batch // dist.world_size, dist.world_size // dist.local_world_size
    meaning = {"tf32": ", which is fp32 on a CPU"} if dist.device.type == "cpu" else {}
    where = f"backend {dist.backend}, {dist.device.type}, precision {dist.precision}{meaning.get(dist.precision, '')}"
    return [
        *([describe_classes(info)] if info.class_names else []),
        f"{dist.world_size} process(es) on {nodes} node(s), {where}",
        f"global batch {batch}, {share} per process",
        f"G has {sizes['G']:,} parameters, D {sizes['D']:,}; each iteration all-reduces {sent:,} bytes of gradients",
    ]
