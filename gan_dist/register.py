"""Decorators by which users add parts of their own: see docs/parts.md.

A part gets its arguments from the settings, as keyword-only arguments. A part that is registered again from the same
module replaces itself, as when a notebook's cell is run twice. All functions raise `gan_dist.errors.ConfigError` if
another module has registered a part of the same kind and name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from gan_dist.data.datasets import DATASETS
from gan_dist.engine.callbacks.users import CALLBACKS
from gan_dist.errors import ConfigError
from gan_dist.game.augment import AUGMENTATIONS, Augmentation
from gan_dist.game.losses import LOSSES
from gan_dist.game.regularizers import PENALTIES
from gan_dist.metrics.extractors import EXTRACTORS
from gan_dist.metrics.features import METRICS
from gan_dist.models import DISCRIMINATORS, GENERATORS
from gan_dist.parts import Table
from gan_dist.report.trackers import TRACKERS

Code = TypeVar("Code", bound=Callable[..., Any])


def _register(table: Table, name: str, value: Callable[[Any], Any] | None = None) -> Callable[[Code], Code]:
    """Return the decorator that adds a part; `value` makes the part of the decorated function or class."""
    if not isinstance(name, str) or not name or name.strip("._-0123456789") == "" or any(c in name for c in "=,{}[] "):
        raise ConfigError(f"{name!r} cannot be the name of a {table.kind}: use letters, digits and underscores")

    def decorate(code: Code) -> Code:
        table.register(name, code, value(code) if value else None)
        return code

    return decorate


def register_generator(name: str) -> Callable[[Code], Code]:
    """Register a class of generators for `model.name=NAME` or `model.g_name=NAME`.

    It is made as `Generator(image_shape, num_classes, z_dim, widths, *, arguments)` with the arguments in
    `model.g_args`, and called as `G(z, y)`: latents z (N, z_dim), labels y (N,) int64, or no y if num_classes is 0. It
    returns images (N, *image_shape) in [-1, 1], and has the attributes `image_shape`, `num_classes` and `z_dim`. It may
    have a static method `check(image_shape, widths)`, which raises ValueError if it cannot make such images.
    """
    return _register(GENERATORS, name)


def register_discriminator(name: str) -> Callable[[Code], Code]:
    """Register a class of discriminators for `model.name=NAME` or `model.d_name=NAME`.

    It is made as `Discriminator(image_shape, num_classes, widths, *, arguments)` with the arguments in `model.d_args`,
    and called as `D(x, y)`: images x (N, C, H, W), labels y (N,) int64, or no y if num_classes is 0. It returns logits
    (N,). It may have a static method `check(image_shape, widths)`, as a generator, and a method `freezable()`, which
    returns the modules that `init.freeze_D` can freeze, from the image on.
    """
    return _register(DISCRIMINATORS, name)


def register_loss(name: str) -> Callable[[Code], Code]:
    """Register a function for `loss.name=NAME` that returns a `gan_dist.game.losses.Loss`.

    Its keyword-only arguments are those in `loss.args`.
    """
    return _register(LOSSES, name)


def register_penalty(name: str) -> Callable[[Code], Code]:
    """Register a function for `loss.penalties={NAME: {…}}`, whose values are added to D's loss.

    It is called as `penalty(D, x_real, x_fake, y, u, *, arguments)` and returns one value per image, (N,): images
    x_real and x_fake (N, C, H, W) in [-1, 1], which require no gradient; the labels y (N,) of both, None without
    labels; and u (N,), uniform random numbers in [0, 1). It calls `D(x, y)`, and may differentiate twice. As R1, it is
    computed in every `loss.penalty_interval`-th step of D, and multiplied by the interval there.
    """
    return _register(PENALTIES, name)


def register_dataset(name: str) -> Callable[[Code], Code]:
    """Register a function for `data.name=NAME` that returns a data set as `gan_dist.train(dataset=…)` takes it.

    It is called as `make(root, *, arguments)` with the path `data.root` and the arguments in `data.args`.
    """
    return _register(DATASETS, name)


def register_extractor(name: str) -> Callable[[Code], Code]:
    """Register a function or a class for `metrics.extractor=NAME` that makes a feature extractor.

    It is called as `make(device, *, arguments)` with the arguments in `metrics.args`. What it returns maps images uint8
    (N, C, H, W) to features (N, num_features) and logits (N, num_logits), both float32, and has the attributes
    `num_features` and `num_logits`.
    """
    return _register(EXTRACTORS, name)


def register_metric(name: str) -> Callable[[Code], Code]:
    """Register a function for `metrics.extra={NAME: {…}}`, which measures generated images.

    It is called as `metric(real, fake, logits, *, arguments)` with the extractor's features of real and of generated
    images, (N, D) and (M, D), and logits of the latter, (M, K), and returns a number. The name of the figure is
    NAME_<extractor>.
    """
    return _register(METRICS, name)


def register_tracker(name: str) -> Callable[[Code], Code]:
    """Register a function or a class for `tracking.extra={NAME: {…}}`, which makes a tracker in the main process.

    It is called as `make(run, *, arguments)` with a `gan_dist.report.trackers.TrackedRun`, and returns an object with
    the methods of `gan_dist.report.tracking.Tracker`.
    """
    return _register(TRACKERS, name)


def register_augmentation(name: str, numbers: int) -> Callable[[Code], Code]:
    """Register a function for `train.augment=[NAME]`, which changes every image that D sees.

    It is called as `augment(x, bits, *, arguments)` with the arguments in `train.augment_args={NAME: {…}}`, images x
    (N, C, H, W) and random bits, int64 (N, numbers), of which `gan_dist.rng.unit` makes numbers in [0, 1). It returns
    images of the same shape, through which gradients flow. It must not draw random numbers of its own.

    Args:
        name: the name.
        numbers: random numbers per image.
    """
    return _register(AUGMENTATIONS, name, lambda code: Augmentation(code, numbers))


def register_callback(name: str) -> Callable[[Code], Code]:
    """Register a class for `callbacks={NAME: {…}}`, whose objects are called during training, in all processes.

    They are made with the arguments in the setting, and called with a `gan_dist.engine.callbacks.users.Context` after
    each `every_kimg` thousand images, an attribute. They may have the attributes `at_start` and `at_end`, to be called
    also before and after the training, and the methods `state_dict()` and `load_state_dict(state)`, by which
    checkpoints save and restore their state, as JSON.
    """
    return _register(CALLBACKS, name)
