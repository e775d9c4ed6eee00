"""Try parts of users before a run starts, so that a wrong shape is refused in a line and does not train silently."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gan_dist.errors import ConfigError
from gan_dist.game.losses import LOSSES, Loss
from gan_dist.models import DISCRIMINATORS, GENERATORS
from gan_dist.settings.schema import Model

N = 4  # images in a trial


def try_networks(model: Model, G: nn.Module, D: nn.Module, image_shape: tuple[int, int, int], num_classes: int) -> None:
    """Check the attributes of G and the shapes of what G and D return, if a user has registered one of them.

    Args:
        model: the settings.
        G, D: the networks on the meta device.
        image_shape: (C, H, W).
        num_classes: number of classes; 0 if the networks take no labels.

    Raises:
        ConfigError: an attribute is missing, or a shape is wrong, or a network fails.
    """
    names = model.name_of_G, model.name_of_D
    if names[0] in GENERATORS.own and names[1] in DISCRIMINATORS.own:
        return
    if wrong := wrong_attribute(G, image_shape, num_classes, model.z_dim):
        raise ConfigError(f"{names[0]}: {wrong}: set it in its __init__")
    labels = (torch.zeros(N, dtype=torch.int64, device="meta"),) if num_classes else ()
    x = torch.empty(N, *image_shape, device="meta")
    z, label = torch.empty(N, model.z_dim, device="meta"), ", y" * len(labels)
    _compare(f"{names[0]}: G(z{label})", G, (z, *labels), x.shape)
    _compare(f"{names[1]}: D(x{label})", D, (x, *labels), torch.Size([N]))


def wrong_attribute(G: nn.Module, image_shape: tuple[int, int, int], num_classes: int, z_dim: int) -> str:
    """Return what is wrong with an attribute that G must have, in words; "" if they are right."""
    for attribute, value in (("image_shape", image_shape), ("num_classes", num_classes), ("z_dim", z_dim)):
        found: Any = getattr(G, attribute, None)
        if found is None or (tuple(found) if attribute == "image_shape" else found) != value:
            return f"G.{attribute} must be {value}, and is {found}"
    return ""


def _compare(what: str, network: nn.Module, inputs: tuple[Tensor, ...], shape: torch.Size) -> None:
    """Call a network, and compare the shape of what it returns."""
    try:
        with torch.no_grad():
            found = network(*inputs)
    except Exception as error:  # the code is a user's
        if isinstance(error, NotImplementedError) or "meta" in str(error):
            return  # it works with values, which tensors on the meta device do not have
        raise ConfigError(f"{what} failed: {type(error).__name__}: {str(error)[:200]}") from error
    if not isinstance(found, Tensor) or found.shape != shape:
        has = f"has the shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"is a {type(found).__name__}"
        raise ConfigError(f"{what} must have the shape {tuple(shape)} for {N} images, and {has}")


def try_loss(name: str, loss: Loss) -> None:
    """Check that a loss that a user has registered gives one value per image.

    Raises:
        ConfigError: it does not.
    """
    if name in LOSSES.own:
        return
    if not isinstance(loss, Loss):
        raise ConfigError(f"loss.name={name}: it must return a gan_dist.Loss, and returns a {type(loss).__name__}")
    for side in ("D", "G"):
        try:
            found = loss_of(side, loss, torch.zeros(N), torch.zeros(N))
        except Exception as error:  # the code is a user's
            raise ConfigError(f"loss.name={name}: {side}'s loss failed: {type(error).__name__}: {error}") from error
        if not isinstance(found, Tensor) or found.shape != (N,):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ConfigError(f"loss.name={name}: {side}'s loss must be one value per image, ({N},), and is {shape}")


def loss_of(side: str, loss: Loss, real: Tensor, fake: Tensor) -> Tensor:
    """Return the loss of "D" or of "G" for logits (N,) of real and of generated images, without label smoothing."""
    if side == "D":
        return loss.D(real, fake, *((0.0,) if loss.has_target else ()))
    return loss.G(fake, real) if loss.paired else loss.G(fake)


def random_layers(network: nn.Module) -> str:
    """Return the names of the layers of a network that draw random numbers of their own, in words; "" for none."""
    kinds = (nn.modules.dropout._DropoutNd, nn.RReLU)
    found = {type(module).__name__ for module in network.modules() if isinstance(module, kinds)}
    return ", ".join(sorted(found))
