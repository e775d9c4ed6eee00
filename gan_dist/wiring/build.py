"""The composition root: from a config to a wired Trainer. The one place that knows all the parts."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import torch
from torch import Tensor, nn

from gan_dist import models
from gan_dist.checkpoint.files import config_path, find_checkpoint, load_network, read_facts, restore, set_aside
from gan_dist.checkpoint.state import State
from gan_dist.data import POINTS, DataInfo, describe
from gan_dist.data.loader import draw, make_loader
from gan_dist.data.points import modes
from gan_dist.data.shared import load_shared, shrink
from gan_dist.data.sources import Images, ImageTensor, count_readable, load_dataset
from gan_dist.engine.callbacks.evaluate import Evaluate
from gan_dist.engine.callbacks.grid import SampleGrid, real_grid, sample_grid
from gan_dist.engine.callbacks.profile import Profile
from gan_dist.engine.callbacks.progress import LogProgress, ProgressBar
from gan_dist.engine.callbacks.save import Retention, SaveCheckpoint
from gan_dist.engine.health import Health
from gan_dist.engine.stats import Clock, RunningMeans
from gan_dist.engine.trainer import Batches, Callback, Trainer
from gan_dist.errors import ConfigError, UserError
from gan_dist.kernels.layout import adapt
from gan_dist.metrics import Judge
from gan_dist.metrics.classifier import trained_classifier
from gan_dist.metrics.evaluate import Evaluator
from gan_dist.metrics.extractors import ClassifierExtractor, make_extractor
from gan_dist.metrics.points import PointsEvaluator, sample_points
from gan_dist.metrics.stacked import StackedEvaluator, first_channel
from gan_dist.parallel.distributed import Distributed
from gan_dist.report.scatter import scatter_picture
from gan_dist.report.tracking import LocalTracker, Tracker, Trackers, WandbTracker
from gan_dist.rng import course_seed
from gan_dist.settings.config import as_dict, as_yaml, choose, for_file, load_config
from gan_dist.settings.schema import Config
from gan_dist.wiring.checks import check_args, check_content, check_metrics, check_parts
from gan_dist.wiring.parts import make_generator, make_state, make_step

log = logging.getLogger(__name__)

SCATTERED = 2500  # points in a picture


def load_generator(run_dir: Path, checkpoint: str, device: str) -> nn.Module:
    """See `gan_dist.load_generator`."""
    return _generator(find_checkpoint(run_dir, checkpoint)).to(device)


def _generator(checkpoint: Path) -> nn.Module:
    """A checkpoint's G_ema in eval mode, fp32, on the CPU."""
    facts = read_facts(checkpoint)
    config = load_config(config_path(checkpoint))
    if config.model.name not in models.names():
        raise ConfigError(f"{checkpoint}: model.name={config.model.name}: {choose(config.model.name, models.names())}")
    check_args(config.model)
    try:
        with torch.device("meta"):  # takes no memory until the file is seen to hold as much
            G = make_generator(config.model, tuple(facts["image_shape"]), facts["num_classes"])
    except Exception as error:  # a stranger's numbers: what it can't make, or is too large to be
        raise ConfigError(f"{checkpoint}: {config.model.name}: {type(error).__name__}: {str(error)[:200]}") from error
    load_network(checkpoint, "G_ema", G)
    return G.eval().requires_grad_(False)


def cache_dir() -> Path:
    """Where networks for metrics are kept between runs: $GAN_DIST_CACHE, or the user's cache directory."""
    return Path(os.environ.get("GAN_DIST_CACHE") or platformdirs.user_cache_dir("gan_dist"))


def stage_dir() -> Path | None:
    """A directory on each node's own disk for copies of image files, if $GAN_DIST_STAGE names one."""
    return Path(os.environ["GAN_DIST_STAGE"]) if os.environ.get("GAN_DIST_STAGE") else None


@dataclass
class WiredRun:
    """A run that is ready to start, and what has to be closed after it."""

    trainer: Trainer
    state: State
    tracker: Tracker
    bar: ProgressBar
    save: SaveCheckpoint
    summary: list[str]


def _summary(config: Config, state: State, batch: int, dist: Distributed) -> list[str]:
    """The run in three lines, for its log; a growing one in the stage that it starts from."""
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


def build(config: Config, info: DataInfo, run_dir: Path, checkpoint: Path | None, dist: Distributed) -> WiredRun:
    """Read the data, make networks, loop and callbacks, and put the run where the checkpoint says, if there is one."""
    train, total_nimg = config.train, round(config.train.kimg * 1000)
    dataset, key = load_shared(config.data, info, dist, stage_dir())
    if isinstance(dataset, ImageTensor):
        dataset = dataset.on(dist.device)
    state = make_state(config, info, dist)
    if checkpoint:
        check_content(checkpoint, key)
        restore(checkpoint, state)
    class_probs = _class_probs(dataset, info, config)

    stats, clock, skip = RunningMeans(dist), Clock(), train.on_nonfinite == "skip"
    step = make_step(config, state, dist, stats, class_probs)
    last_stage = step.last_stage

    def batches() -> Batches:
        """The course that the run now takes through the data, from where it is, stage by stage if it grows."""
        seed = course_seed(train.seed, state.retries)
        step.reseed(seed)
        while True:
            stage = step.enter_stage()
            images = shrink(dataset, 2 ** (last_stage - stage.number), config.data, info, dist)
            loader = make_loader(images, stage.batch_size, seed, state.nimg, config.data.workers)
            with closing(draw(dist.prepare_loader(loader))) as drawn:
                for batch in drawn:
                    yield batch
                    if step.stages(state.nimg).number != stage.number:
                        break

    def newest() -> Path:
        checkpoint = find_checkpoint(run_dir)
        set_aside(checkpoint)
        return checkpoint

    def recover(event: str) -> Batches:
        if dist.is_main:
            log.warning("%s", event)
        if train.on_nonfinite != "rollback" or state.retries >= train.max_rollbacks:
            raise _sick(event, train.on_nonfinite, run_dir)
        save.forget()
        retries = state.retries + 1
        restore(dist.from_main(newest), state)
        state.retries = retries
        tracker.rewind(state.nimg)
        stats.read()  # forget the sick figures
        if dist.is_main:
            kimg, most = state.nimg / 1000, train.max_rollbacks
            log.warning("went back to %.1f kimg, to go on with other data (%d of %d)", kimg, retries, most)
        return batches()

    tracker = Trackers(_trackers(config, run_dir, state.nimg) if dist.is_main else [])
    bar = ProgressBar(state.nimg, total_nimg, dist)
    progress = LogProgress(_nimg(config.log.every_kimg), state.nimg, total_nimg, stats, tracker, bar, clock, dist)
    facts = {
        "image_shape": list(info.image_shape),
        "num_classes": info.num_classes if config.model.conditional else 0,
        "num_images": info.num_images,
        "data_key": key,
        "environment": dist.environment,
    }
    kept = config.checkpoint
    save = SaveCheckpoint(
        _nimg(kept.every_kimg),
        run_dir,
        facts,
        as_yaml(for_file(config)),
        Retention(kept.keep, _nimg(kept.keep_every_kimg), kept.keep_best),
        dist,
    )
    if config.sample.every_kimg and state.nimg == 0:
        tracker.image(0, "real", _real_picture(dataset, info, config))
    callbacks: list[Callback] = [
        bar,
        progress,
        SampleGrid(_nimg(config.sample.every_kimg), _draw_samples(config, class_probs, dist), tracker, clock),
        save,  # before what may outlast the time between a signal and the end
    ]
    if config.metrics.every_kimg:
        evaluator = make_evaluator(config, info, dataset, class_probs, dist)
        every, then = _nimg(config.metrics.every_kimg), save.if_best if kept.keep_best and kept.every_kimg else None
        callbacks.append(Evaluate(every, evaluator, tracker, clock, dist, then))
    if train.profile and dist.is_main:
        callbacks.append(Profile(run_dir / "trace.json"))
    tell = log.warning if skip and dist.is_main and not state.scalers else None
    trainer = Trainer(
        state,
        step,
        batches(),
        callbacks,
        save,
        Health(20 if skip or state.scalers else 1, tell),
        recover,
        clock,
        total_nimg=total_nimg,
        ema_half_life=config.ema.half_life_kimg * 1000,
        ema_rampup=config.ema.rampup,
        ema_growth=config.ema.growth_kimg * 1000,
    )
    return WiredRun(trainer, state, tracker, bar, save, _summary(config, state, step.batch_size, dist))


def _sick(event: str, policy: str, run_dir: Path) -> UserError:
    advice = "" if policy == "rollback" else ", or set train.on_nonfinite=rollback"
    where = f"the last good checkpoint is in {run_dir}/checkpoints"
    error = UserError(f"{event}; lower the learning rates{advice}; {where}")
    error.everywhere = True  # the gradients are the same in all processes
    return error


def _real_picture(dataset: Images, info: DataInfo, config: Config) -> np.ndarray:
    if config.data.name in POINTS:
        points, _ = dataset.__getitems__(list(range(SCATTERED)))
        return scatter_picture(points.flatten(1).cpu(), modes(config.data.name))
    return real_grid(dataset, info.num_classes, config.sample.rows)


def _draw_samples(config: Config, class_probs: Tensor | None, dist: Distributed) -> Callable[[nn.Module], np.ndarray]:
    """What makes the picture of a generator's samples: a grid of images, or points scattered in the plane."""
    name, seed = config.data.name, config.train.seed
    if name not in POINTS:
        return lambda G: sample_grid(G, seed, config.sample.rows, dist)
    return lambda G: scatter_picture(sample_points(G, SCATTERED, seed, class_probs, dist), modes(name))


def make_evaluator(
    config: Config, info: DataInfo, dataset: Images, class_probs: Tensor | None, dist: Distributed
) -> Judge:
    """What measures generators as configured."""
    metrics = config.metrics
    if config.data.name in POINTS:
        return PointsEvaluator(config.data.name, dist, class_probs, num_images=metrics.num_images, seed=metrics.seed)
    if config.data.stacked:
        assert isinstance(dataset, ImageTensor)
        num_classes = round(info.num_classes ** (1 / 3))
        base = first_channel(dataset, num_classes)
        classifier = trained_classifier(base, num_classes, metrics.seed, cache_dir(), dist)
        return StackedEvaluator(
            ClassifierExtractor(classifier),
            dataset,
            dist,
            num_images=metrics.num_images,
            batch_size=metrics.batch_size,
            seed=metrics.seed,
        )
    return Evaluator(
        make_extractor(metrics, info, dataset, cache_dir(), dist),
        dataset,
        dist,
        class_probs,
        num_images=metrics.num_images,
        batch_size=metrics.batch_size,
        seed=metrics.seed,
    )


def evaluate_checkpoints(
    checkpoints: Sequence[Path], config: Config, dist: Distributed, known: Sequence[dict[str, Any]] = ()
) -> Iterator[dict[str, Any]]:
    """Metrics of each checkpoint's G_ema by the config's protocol, which is in the result with the images it has seen.

    Those that `known` results have, by the same protocol, are left out.
    """
    info = dist.from_main(lambda: describe(config.data))
    check_metrics(config, info)
    dataset, _ = load_shared(config.data, info, dist, stage_dir())
    evaluator = make_evaluator(config, info, dataset, _class_probs(dataset, info, config), dist)
    measured = [result.get("checkpoint") for result in known if result.get("protocol") == evaluator.protocol]
    for path in checkpoints:
        if path.name not in measured:
            # As training has it, so that the figures are the same to the last bit.
            G = adapt(_generator(path).to(dist.device), config.train.precision)
            kimg = read_facts(path)["nimg"] / 1000
            yield {"checkpoint": path.name, "kimg": kimg, **evaluator(G), "protocol": evaluator.protocol}


def fetch(config: Config, dist: Distributed) -> Iterator[str]:
    """Bring everything that a run needs from elsewhere to where it looks for it; gives a line on each part.

    Raises:
        UserError: something can't be had, or is not what it should be.
    """
    info = describe(config.data)
    check_parts(config, info, dist)
    dataset = load_dataset(config.data, info)
    good = len(dataset) if isinstance(dataset, ImageTensor) else count_readable(dataset)
    if good != info.num_images and config.data.name != "folder":
        raise UserError(f"data.name={config.data.name}: {good} good images where {info.num_images} should be")
    shape = "x".join(map(str, info.image_shape))
    if config.data.name in POINTS:
        yield f"data     {config.data.name}: {info.num_images} points, made by the program"
    else:
        where = "inside scikit-learn" if config.data.name == "digits" else f"in {Path(config.data.root).resolve()}"
        yield f"data     {config.data.name}: {good} of {info.num_images} images can be read, {shape}, {where}"
    if config.metrics.every_kimg and not (config.data.name in POINTS or config.data.stacked):
        extractor = make_extractor(config.metrics, info, dataset, cache_dir(), dist)
        yield f"metrics  {extractor.name} in {cache_dir().resolve()}"


def _nimg(kimg: float) -> int:
    return round(kimg * 1000)


def _class_probs(dataset: Images, info: DataInfo, config: Config) -> Tensor | None:
    """How often each class occurs in the data, and so is asked for; None for an unconditional G."""
    if not config.model.conditional:
        return None
    counts = torch.bincount(dataset.labels.cpu(), minlength=info.num_classes)
    return counts / counts.sum()


def _trackers(config: Config, run_dir: Path, nimg: int) -> list[Tracker]:
    trackers: list[Tracker] = [LocalTracker(run_dir, nimg)]
    tracking = config.tracking
    if tracking.wandb != "disabled" and os.environ.get("WANDB_MODE") != "disabled":
        name, values = run_dir.resolve().name, as_dict(config)
        trackers.append(WandbTracker(run_dir, tracking.wandb, tracking.project, tracking.entity, name, values))
    return trackers
