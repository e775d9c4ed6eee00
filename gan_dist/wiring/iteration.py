"""Build one training iteration from the config: loss, penalties, schedules, stages and optimizers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from gan_dist.checkpoint.state import State
from gan_dist.engine.draws import Draws
from gan_dist.engine.ema import Average
from gan_dist.engine.growth import Growth, Stage, grow, stay
from gan_dist.engine.scalars import Scalars
from gan_dist.engine.schedules import OptimizerSchedule, Progress
from gan_dist.engine.stats import RunningMeans
from gan_dist.engine.step import Alternation
from gan_dist.engine.update import Update
from gan_dist.game.augment import make_augmentations
from gan_dist.game.game import Game, Penalties
from gan_dist.game.losses import make_loss
from gan_dist.game.regularizers import PENALTIES
from gan_dist.models import Growing
from gan_dist.parallel.distributed import Distributed
from gan_dist.parallel.wrapped import Wrapped, WrappedNetwork
from gan_dist.settings.schema import Config, Optimizer
from gan_dist.wiring.kinds import kind_of
from gan_dist.wiring.modes import make_compiled, make_graphs


def make_step(
    config: Config, state: State, dist: Distributed, stats: RunningMeans, class_probs: Tensor | None
) -> Alternation:
    """Build the iteration of a run.

    Args:
        config: the settings.
        state: the state of the run, from `gan_dist.wiring.networks.make_state`.
        dist: the processes.
        stats: gets losses, logits, penalties and gradient norms.
        class_probs: probability of each label for G, (num_classes,); None if G takes no label.
    """
    train, ema = config.train, config.ema
    to_float = kind_of(config.data).to_float
    scalars = Scalars(dist.device, _numbers(dist))
    augmentations = make_augmentations(train.augment, train.augment_args)
    draws = Draws(state, train.seed, class_probs, to_float, config.data.hflip, augmentations, scalars)
    wrapped = Wrapped(WrappedNetwork(state.G, dist), WrappedNetwork(state.D, dist))
    growth = Growth(state, wrapped, draws, stages(config, last_stage(state)), dist.share, train.micro_batch_size)
    skip = train.on_nonfinite == "skip"
    schedules = {name: optimizer_schedule(getattr(config.optim, name), total_nimg(config)) for name in ("G", "D")}
    updates = {name: Update(name, state, schedule, dist, stats, skip, scalars) for name, schedule in schedules.items()}
    average = Average(ema.half_life_kimg * 1000, ema.rampup, ema.growth_kimg * 1000)
    graphs, compiled = make_graphs(config, dist), make_compiled(config, wrapped, dist)
    for name, update in updates.items():
        update.compiled = compiled.get(name)
        update.keeps_gradients = graphs is not None and not update.fits_graph
    return Alternation(state, wrapped, growth, make_game(config), draws, updates, average, graphs)


def _numbers(dist: Distributed) -> dict[str, torch.dtype]:
    """Return the names and dtypes of the numbers that a step reads on the device."""
    lr = torch.float32 if dist.device.type == "cuda" else torch.float64  # torch's fused kernels on a GPU need float32
    return {"row": torch.int64, "gamma_scale": torch.float64, "average": dist.dtype, "lr_G": lr, "lr_D": lr}


def nimg_of(kimg: float) -> int:
    """Return a number of images that a setting gives in thousands."""
    return round(kimg * 1000)


def total_nimg(config: Config) -> int:
    """Return the length of the run in images."""
    return nimg_of(config.train.kimg)


def last_stage(state: State) -> int:
    """Return the number of the last stage of progressive growing; 0 for networks that do not grow."""
    return state.G.last_stage if isinstance(state.G, Growing) else 0


def stages(config: Config, last: int) -> Callable[[int], Stage]:
    """Return a function from nimg, the number of images seen, to the stage of progressive growing.

    Args:
        config: the settings.
        last: number of the last stage.
    """
    growth, batch_size = config.growth, config.train.batch_size
    if not growth.stable_kimg:
        return stay(last, batch_size)
    sizes = growth.batch_sizes or [batch_size] * (last + 1)
    return grow(growth.stable_kimg * 1000, growth.fade_kimg * 1000, sizes)


def optimizer_schedule(settings: Optimizer, total: int) -> OptimizerSchedule:
    """Return the schedule of an optimizer's settings in a run of `total` images."""
    return OptimizerSchedule(
        progress(settings, total),
        settings.lr,
        settings.lr_final,
        settings.warmup_kimg * 1000,
        tuple(settings.betas),
        settings.beta2_final,
    )


def progress(settings: Optimizer, total: int) -> Progress:
    """Return the function from nimg to the progress of an optimizer's schedule, in a run of `total` images."""
    return Progress(settings.schedule, settings.schedule_kimg * 1000 or total)


def make_game(config: Config) -> Game:
    """Build the loss with its penalties. The gammas of R1 and R2 decay along the schedule of D's optimizer."""
    loss, decay = config.loss, progress(config.optim.D, total_nimg(config))
    penalties = Penalties(
        drift=loss.drift,
        r1_gamma=loss.r1_gamma,
        r2_gamma=loss.r2_gamma,
        gamma_scale=lambda nimg: 1 + (loss.gamma_decay - 1) * decay(nimg),
        gradient_penalty=loss.gradient_penalty,
        interval=loss.penalty_interval,
        clip_weights=loss.clip_weights,
        others={name: partial(PENALTIES[name], **args) for name, args in loss.penalties.items()},
    )
    return Game(make_loss(loss.name, loss.args), penalties, config.train.n_critic, loss.label_smoothing, loss.d_half)
