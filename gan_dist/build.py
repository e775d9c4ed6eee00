"""The composition root: from a config to a wired Trainer. The one place that knows all the parts."""

from __future__ import annotations

import copy
import inspect
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
from torch.nn.utils import parametrize

from gan_dist import models
from gan_dist.augment import AUGMENTATIONS, Augment
from gan_dist.callbacks.evaluate import Evaluate
from gan_dist.callbacks.grid import SampleGrid, real_grid, sample_grid
from gan_dist.callbacks.progress import LogProgress, ProgressBar
from gan_dist.callbacks.save import Retention, SaveCheckpoint
from gan_dist.callbacks.scatter import scatter_picture
from gan_dist.checkpoint import config_path, find_checkpoint, load_network, read_facts, restore
from gan_dist.config import (
    Config,
    Model,
    Optimizer,
    as_dict,
    as_yaml,
    changes_that_matter,
    choose,
    describe_type,
    for_file,
    load_config,
)
from gan_dist.data import POINTS, DataInfo, describe
from gan_dist.data.loader import Preprocess, draw, make_loader
from gan_dist.data.points import modes
from gan_dist.data.shared import load_shared
from gan_dist.data.sources import Images, ImageTensor, count_readable, load_dataset, shrink
from gan_dist.distributed import Distributed
from gan_dist.errors import ConfigError, UserError
from gan_dist.health import Health
from gan_dist.losses import LOSSES
from gan_dist.metrics.evaluate import Evaluator
from gan_dist.metrics.extractors import make_extractor
from gan_dist.metrics.points import PointsEvaluator, sample_points
from gan_dist.models._layers import MinibatchStd
from gan_dist.rng import Purpose, course_seed, torch_seed
from gan_dist.schedules import course, optimizer_schedule, stages
from gan_dist.state import State
from gan_dist.stats import Clock, RunningMeans
from gan_dist.step import Alternation, Penalties
from gan_dist.tracking import LocalTracker, Tracker, Trackers, WandbTracker
from gan_dist.trainer import Batches, Callback, Trainer

log = logging.getLogger(__name__)

SCATTERED = 2500  # points in a picture


def check_parts(config: Config, info: DataInfo, dist: Distributed) -> None:
    """Refuse what can't be combined, before data are read or models built.

    Raises:
        ConfigError: one line that names the key, the value and the nearest valid one.
    """
    model = config.model
    if model.name not in models.names():
        raise ConfigError(f"model.name={model.name}: {choose(model.name, models.names())}")
    try:
        models.architecture(model.name).check(info.image_shape, model.g_widths, model.d_widths)
    except ValueError as error:
        size = "x".join(map(str, info.image_shape[1:]))
        raise ConfigError(f"model.name={model.name} with data.image_size={size}: {model.name} {error}") from None
    _check_args("model.g_args", model.g_args, models.architecture(model.name).Generator)
    _check_args("model.d_args", model.d_args, models.architecture(model.name).Discriminator)
    if model.conditional and not info.num_classes:
        hint = " or data.class_folders=true" if config.data.name == "folder" else ""
        raise ConfigError(
            f"model.conditional=true, but data.name={config.data.name} has no labels; set model.conditional=false{hint}"
        )
    if config.data.name in POINTS and (model.name != "mlp" or model.g_args.get("tanh", True)):
        raise ConfigError(
            f"data.name={config.data.name} are points, which lie outside [-1, 1]: set model.name=mlp and "
            "model.g_args={tanh: false}"
        )
    for name in config.train.augment:
        if name not in AUGMENTATIONS:
            raise ConfigError(f"train.augment={name}: {choose(name, list(AUGMENTATIONS))}")
    if config.train.augment and config.data.name in POINTS:
        raise ConfigError(f"train.augment is for images, and data.name={config.data.name} are points; set it to []")
    _check_game(config, info, dist.world_size)
    if config.metrics.every_kimg:
        check_metrics(config, info)
    for key, batch_size in _batch_sizes(config):
        if batch_size > info.num_images:
            raise ConfigError(
                f"{key}={batch_size} is larger than the data set of {info.num_images} images; at most {info.num_images}"
            )
    for side in ("G", "D"):
        settings: Optimizer = getattr(config.optim, side)
        try:
            make_optimizer(settings, nn.Linear(1, 1))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"optim.{side}.name={settings.name}: {error}") from None


def _check_args(key: str, given: dict[str, Any], network: type[nn.Module]) -> None:
    """Arguments of an architecture must be some that it has, with values of their defaults' types."""
    parameters = inspect.signature(network).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    for name, value in given.items():
        if name not in defaults:
            advice = choose(name, list(defaults)) if defaults else "this architecture has none"
            raise ConfigError(f"{key}: unknown argument {name}; {advice}")
        kind = type(defaults[name])
        if type(value) not in ((int, float) if kind is float else (kind,)):
            raise ConfigError(f"{key}: {name}={value} must be {describe_type(kind)}, for example {defaults[name]}")


def _check_game(config: Config, info: DataInfo, world_size: int) -> None:
    """Refuse a loss, regularizers, growth and batches that make no sense together, or with these networks."""
    loss, model, growth = config.loss, config.model, config.growth
    num_classes = info.num_classes if model.conditional else 0
    try:
        with torch.device("meta"):
            G = make_generator(model, info.image_shape, num_classes)
            D = make_discriminator(model, info.image_shape, num_classes)
    except ValueError as error:
        raise ConfigError(f"model.name={model.name} {error}") from None
    num_stages = G.last_stage + 1 if isinstance(G, models.Growing) else 0
    if growth.stable_kimg and not num_stages:
        raise ConfigError(f"growth.stable_kimg={growth.stable_kimg}: {model.name} does not grow; set it to 0")
    if growth.batch_sizes and not (growth.stable_kimg and len(growth.batch_sizes) == num_stages):
        wanted = f"one for each of {num_stages} sizes" if growth.stable_kimg else "none without growth.stable_kimg"
        raise ConfigError(f"growth.batch_sizes={growth.batch_sizes} must be {wanted}")
    group_size = max((m.group_size for m in D.modules() if isinstance(m, MinibatchStd)), default=1)
    for key, batch_size in _batch_sizes(config):
        _check_split(key, batch_size, config.train.micro_batch_size, world_size, group_size)
    if loss.gradient_penalty and any(isinstance(module, nn.BatchNorm2d) for module in D.modules()):
        raise ConfigError(
            f"loss.gradient_penalty={loss.gradient_penalty} is of each sample's own logit, but batch normalization in "
            f"D of model.name={config.model.name} mixes samples: set model.d_args={{batch_norm: false}}"
        )
    normalised = any(isinstance(module, parametrize.ParametrizationList) for module in D.modules())
    bounds = (loss.clip_weights, loss.gradient_penalty, loss.r1_gamma, loss.r2_gamma, normalised)
    if LOSSES[loss.name].critic and not any(bounds):
        raise ConfigError(
            f"loss.name={loss.name} grows without bound unless the critic is held: set loss.gradient_penalty=10, "
            "loss.clip_weights=0.01 or loss.r1_gamma"
        )


def check_metrics(config: Config, info: DataInfo) -> None:
    """Refuse metrics that the data set does not allow."""
    if config.data.name in POINTS:
        return
    if config.metrics.extractor == "classifier" and not info.num_classes:
        raise ConfigError(
            f"metrics.extractor=classifier, but data.name={config.data.name} has no labels to train one on; "
            "set metrics.extractor=inception, or metrics.every_kimg=0 for no metrics"
        )


def _batch_sizes(config: Config) -> list[tuple[str, int]]:
    """Every global batch that a run has, and the setting that says so."""
    sizes = config.growth.batch_sizes
    return [("train.batch_size", config.train.batch_size), *(("growth.batch_sizes", size) for size in sizes)]


def _check_split(key: str, batch_size: int, micro: int, world_size: int, group_size: int) -> None:
    """The global batch must fall into equal shares, a share into equal micro-batches, and these into whole groups."""
    if batch_size % world_size:
        raise ConfigError(
            f"{key}={batch_size} is the global batch and must divide by the {world_size} processes; "
            f"nearest: {max(1, round(batch_size / world_size)) * world_size}"
        )
    share = batch_size // world_size
    if micro and micro < share and share % micro:
        raise ConfigError(
            f"train.micro_batch_size={micro} must divide the batch of a process, {share} "
            f"({key}={batch_size} over {world_size})"
        )
    for name, size in ((f"{key}={batch_size} over {world_size} processes", share), ("train.micro_batch_size", micro)):
        if size % group_size:
            raise ConfigError(
                f"{name}: {size} must divide by {group_size}, as D compares groups of {group_size} images"
            )


def optimizer_names() -> list[str]:
    """The classes of torch.optim that step without a closure on dense gradients."""
    names = [name for name, cls in vars(torch.optim).items() if inspect.isclass(cls)]
    return sorted(set(names) - {"Optimizer", "LBFGS", "SparseAdam", "Muon"})


def make_optimizer(config: Optimizer, module: nn.Module) -> torch.optim.Optimizer:
    """The configured optimizer over a module's parameters."""
    if config.name not in optimizer_names():
        raise ValueError(choose(config.name, optimizer_names()))
    cls = getattr(torch.optim, config.name)
    arguments: dict[str, Any] = {"lr": config.lr, **config.args}
    if "betas" in inspect.signature(cls).parameters:
        arguments.setdefault("betas", tuple(config.betas))
    if config.name in ("Adam", "AdamW", "SGD") and not arguments.keys() & {"foreach", "differentiable"}:
        arguments.setdefault("fused", True)  # one pass over the weights
    return cls(module.parameters(), **arguments)


def make_generator(model: Model, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """G as configured; `num_classes` is 0 for an unconditional one."""
    G = models.architecture(model.name).Generator
    return G(image_shape, num_classes, model.z_dim, model.g_widths, **model.g_args)


def make_discriminator(model: Model, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """D as configured, likewise."""
    return models.architecture(model.name).Discriminator(image_shape, num_classes, model.d_widths, **model.d_args)


def make_state(config: Config, info: DataInfo, dist: Distributed) -> State:
    """Networks initialised from the seed, on the CPU whatever the device, and their optimizers."""
    model, seed = config.model, config.train.seed
    num_classes = info.num_classes if model.conditional else 0
    with torch_seed(seed, Purpose.INIT_G):
        G = make_generator(model, info.image_shape, num_classes)
    with torch_seed(seed, Purpose.INIT_D):
        D = make_discriminator(model, info.image_shape, num_classes)
    G, D = (module.to(dist.device, dist.dtype) for module in (G, D))
    G_ema = copy.deepcopy(G).eval().requires_grad_(False)
    if config.train.sync_batch_norm:
        G, D = dist.sync_batch_norm(G), dist.sync_batch_norm(D)
    scalers = {name: scaler for name in ("G", "D") if (scaler := dist.make_scaler())}
    return State(G, D, G_ema, make_optimizer(config.optim.G, G), make_optimizer(config.optim.D, D), scalers)


def load_generator(run_dir: Path, checkpoint: str, device: str) -> nn.Module:
    """See `gan_dist.load_generator`."""
    return _generator(find_checkpoint(run_dir, checkpoint)).to(device)


def _generator(checkpoint: Path) -> nn.Module:
    """A checkpoint's G_ema in eval mode, fp32, on the CPU."""
    facts = read_facts(checkpoint)
    config = load_config(config_path(checkpoint))
    if config.model.name not in models.names():
        raise ConfigError(f"{checkpoint}: model.name={config.model.name}: {choose(config.model.name, models.names())}")
    try:
        with torch.device("meta"):  # takes no memory until the file is seen to hold as much
            G = make_generator(config.model, tuple(facts["image_shape"]), facts["num_classes"])
    except (ValueError, RuntimeError, OverflowError) as error:  # what it can't make, or is too large to be
        raise ConfigError(f"{checkpoint}: {config.model.name} {str(error)[:200]}") from None
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


def _summary(config: Config, state: State, dist: Distributed) -> list[str]:
    """The run in three lines, for its log: how it is spread, and the networks."""
    sizes = {name: sum(p.numel() for p in getattr(state, name).parameters()) for name in ("G", "D")}
    width = 2 if config.train.compress_gradients else torch.finfo(dist.dtype).bits // 8
    sent = (sizes["G"] + config.train.n_critic * sizes["D"]) * width if dist.world_size > 1 else 0
    share, nodes = config.train.batch_size // dist.world_size, dist.world_size // dist.local_world_size
    where = f"backend {dist.backend}, {dist.device.type}, {dist.precision}"
    return [
        f"{dist.world_size} process(es) on {nodes} node(s), {where}",
        f"global batch {config.train.batch_size}, {share} per process",
        f"G has {sizes['G']:,} parameters, D {sizes['D']:,}; each iteration all-reduces {sent:,} bytes of gradients",
    ]


def build(config: Config, info: DataInfo, run_dir: Path, checkpoint: Path | None, dist: Distributed) -> WiredRun:
    """Read the data, make networks, loop and callbacks, and put the run where the checkpoint says, if there is one."""
    train, loss, total_nimg = config.train, config.loss, round(config.train.kimg * 1000)
    dataset = load_shared(config.data, info, dist, stage_dir())
    if isinstance(dataset, ImageTensor):
        dataset = dataset.on(dist.device)
    state = make_state(config, info, dist)
    if checkpoint:
        restore(checkpoint, state)
    class_probs = _class_probs(dataset, info, config)

    last_stage = state.G.last_stage if isinstance(state.G, models.Growing) else 0
    stage_at = stages(config.growth, train.batch_size, last_stage)
    decay = course(config.optim.D, total_nimg)
    stats, clock = RunningMeans(dist), Clock()
    step = Alternation(
        state,
        dist,
        stats,
        LOSSES[loss.name],
        Preprocess(train.seed, config.data.hflip, dist.dtype),
        Augment(train.augment, train.seed),
        class_probs,
        stages=stage_at,
        micro_batch_size=train.micro_batch_size,
        n_critic=train.n_critic,
        seed=train.seed,
        schedule_G=optimizer_schedule(config.optim.G, total_nimg),
        schedule_D=optimizer_schedule(config.optim.D, total_nimg),
        penalties=Penalties(
            loss.drift,
            loss.r1_gamma,
            loss.r2_gamma,
            lambda nimg: 1 + (loss.gamma_decay - 1) * decay(nimg),
            loss.gradient_penalty,
            loss.penalty_interval,
            loss.clip_weights,
        ),
        label_smoothing=loss.label_smoothing,
        d_half=loss.d_half,
        skip_nonfinite=train.on_nonfinite == "skip",
    )

    def batches() -> Batches:
        """The course that the run now takes through the data, from where it is, stage by stage if it grows."""
        seed = course_seed(train.seed, state.retries)
        step.reseed(seed)
        while True:
            stage = step.enter_stage()
            images = shrink(dataset, 2 ** (last_stage - stage.number))
            loader = make_loader(images, stage.batch_size, seed, state.nimg, config.data.workers)
            with closing(draw(dist.prepare_loader(loader))) as drawn:
                for batch in drawn:
                    yield batch
                    if stage_at(state.nimg).number != stage.number:
                        break

    def recover(event: str) -> Batches:
        if train.on_nonfinite != "rollback" or state.retries >= train.max_rollbacks:
            raise _sick(event, train.on_nonfinite, run_dir)
        if dist.is_main:
            log.warning("%s", event)
        save.wait()
        retries = state.retries + 1
        restore(dist.from_main(lambda: find_checkpoint(run_dir)), state)
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
    ]
    if config.metrics.every_kimg:
        evaluator = make_evaluator(config, info, dataset, class_probs, dist)
        every, on_best = _nimg(config.metrics.every_kimg), save if kept.keep_best and kept.every_kimg else None
        callbacks.append(Evaluate(every, evaluator, tracker, clock, dist, on_best))
    callbacks.append(save)
    trainer = Trainer(
        state,
        step,
        batches(),
        callbacks,
        save,
        Health(patience=20 if train.on_nonfinite == "skip" or state.scalers else 1),
        recover,
        clock,
        total_nimg=total_nimg,
        ema_half_life=config.ema.half_life_kimg * 1000,
        ema_rampup=config.ema.rampup,
        ema_growth=config.ema.growth_kimg * 1000,
    )
    return WiredRun(trainer, state, tracker, bar, save, _summary(config, state, dist))


def _sick(event: str, policy: str, run_dir: Path) -> UserError:
    advice = "" if policy == "rollback" else ", or set train.on_nonfinite=rollback"
    where = f"the last good checkpoint is in {run_dir}/checkpoints"
    error = UserError(f"{event}; lower the learning rates{advice}; {where}")
    error.everywhere = True  # the gradients are the same in all processes
    return error


def check_resume(checkpoint: Path, config: Config, info: DataInfo) -> None:
    """Refuse to go on with a run as another one.

    Raises:
        ConfigError: what differs, old -> new.
    """
    changes = changes_that_matter(load_config(config_path(checkpoint)), config)
    num_images = read_facts(checkpoint)["num_images"]
    if num_images != info.num_images:
        changes.append(f"images in the data set: {num_images} -> {info.num_images}")
    if changes:
        raise ConfigError(f"{checkpoint} is of another run: {'; '.join(changes)}; start a new one in another run.dir")


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
) -> Evaluator | PointsEvaluator:
    """What measures generators as configured."""
    metrics = config.metrics
    if config.data.name in POINTS:
        return PointsEvaluator(config.data.name, dist, class_probs, num_images=metrics.num_images, seed=metrics.seed)
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
    dataset = load_shared(config.data, info, dist, stage_dir())
    evaluator = make_evaluator(config, info, dataset, _class_probs(dataset, info, config), dist)
    measured = [result.get("checkpoint") for result in known if result.get("protocol") == evaluator.protocol]
    for path in checkpoints:
        if path.name not in measured:
            G = _generator(path).to(dist.device)
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
    where = "inside scikit-learn" if config.data.name == "digits" else f"in {Path(config.data.root).resolve()}"
    yield f"data     {config.data.name}: {good} of {info.num_images} images can be read, {shape}, {where}"
    if config.metrics.every_kimg:
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
