"""Networks, optimizers and the alternation as configured."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from gan_dist import models
from gan_dist.checkpoint.state import State
from gan_dist.data import DataInfo
from gan_dist.data.loader import Preprocess
from gan_dist.engine.schedules import course, optimizer_schedule, stages
from gan_dist.engine.stats import RunningMeans
from gan_dist.engine.step import Alternation, Penalties
from gan_dist.game.augment import Augment
from gan_dist.game.losses import LOSSES
from gan_dist.kernels.layout import adapt
from gan_dist.parallel.distributed import Distributed
from gan_dist.rng import Purpose, torch_seed
from gan_dist.settings.config import choose
from gan_dist.settings.schema import Config, Model, Optimizer


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
    G, D = (adapt(module.to(dist.device, dist.dtype), dist.precision) for module in (G, D))
    G_ema = copy.deepcopy(G).eval().requires_grad_(False)
    if config.train.sync_batch_norm:
        G, D = dist.sync_batch_norm(G), dist.sync_batch_norm(D)
    scalers = {name: scaler for name in ("G", "D") if (scaler := dist.make_scaler())}
    return State(G, D, G_ema, make_optimizer(config.optim.G, G), make_optimizer(config.optim.D, D), scalers)


def make_step(
    config: Config, state: State, dist: Distributed, stats: RunningMeans, class_probs: Tensor | None
) -> Alternation:
    """The alternation as configured; `class_probs`: see there."""
    train, loss, total_nimg = config.train, config.loss, round(config.train.kimg * 1000)
    last_stage = state.G.last_stage if isinstance(state.G, models.Growing) else 0
    decay = course(config.optim.D, total_nimg)
    return Alternation(
        state,
        dist,
        stats,
        LOSSES[loss.name],
        Preprocess(train.seed, config.data.hflip, dist.dtype),
        Augment(train.augment, train.seed),
        class_probs,
        stages=stages(config.growth, train.batch_size, last_stage),
        last_stage=last_stage,
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
