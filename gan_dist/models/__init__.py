"""Architectures of G and D. Each architecture is one file here, and the file's name is the value of `model.name`.

A user's architecture is a Generator or a Discriminator, or both, registered under a name; see docs/parts.md. A
Generator of one architecture can play against a Discriminator of another one. An architecture's file here defines

- `check(image_shape, g_widths, d_widths)`, which raises ValueError if the architecture cannot make these networks; the
  message names the nearest valid value;
- `Generator(image_shape, num_classes, z_dim, widths)`: `G(z, y)` maps latents z (N, z_dim) and labels y (N,) to images
  (N, C, H, W) in [-1, 1]. G has the attributes `image_shape`, `num_classes` and `z_dim`;
- `Discriminator(image_shape, num_classes, widths)`: `D(x, y)` maps images x (N, C, H, W) and labels y (N,) to logits
  (N,).

A Discriminator may have a method `freezable()`, which returns the parts that can be frozen, a list of modules from the
image on; see `init.freeze_D`. A user's class may have a static method `check(image_shape, widths)`, which raises
ValueError as `check` does.

If `num_classes` is 0, the network is unconditional and takes no y. If `widths` is empty, the architecture uses its
default widths. The settings `model.g_args` and `model.d_args` set the keyword-only arguments of the two classes.
Networks for progressive growing are subclasses of `Growing`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from gan_dist.parts import Table


def names() -> list[str]:
    """Return the names of this package's architectures, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def architecture(name: str) -> ModuleType:
    """Import and return the module of the architecture `name`, which must be one of `names()`."""
    return importlib.import_module(f"{__name__}.{name}")


class _Own(Mapping[str, type[nn.Module]]):
    """The classes of one name in the files of the architectures, which are imported when they are needed."""

    def __init__(self, class_name: str) -> None:
        self._class_name = class_name

    def __getitem__(self, name: str) -> type[nn.Module]:
        if name not in names():
            raise KeyError(name)
        found: type[nn.Module] = getattr(architecture(name), self._class_name)
        return found

    def __contains__(self, name: object) -> bool:
        return name in names()

    def __iter__(self) -> Iterator[str]:
        return iter(names())

    def __len__(self) -> int:
        return len(names())


# The valid values of `model.name`, `model.g_name` and `model.d_name`.
GENERATORS = Table("generator", _Own("Generator"))
DISCRIMINATORS = Table("discriminator", _Own("Discriminator"))

Sides = tuple[str, Sequence[int]]  # the name of an architecture, and the widths of its layers


def check(image_shape: tuple[int, int, int], g: Sides, d: Sides) -> None:
    """Check that G and D can be made for images of this shape.

    Args:
        image_shape: (C, H, W).
        g, d: G's and D's architecture and widths.

    Raises:
        ValueError: they cannot; the message begins with the name of the architecture and names the nearest valid value.
    """
    for name in dict.fromkeys((g[0], d[0])):
        if name in names():
            widths = [its if side == name else () for side, its in (g, d)]
            _named(name, architecture(name).check, image_shape, *widths)
    for (name, its), table in ((g, GENERATORS), (d, DISCRIMINATORS)):
        if name not in table.own and hasattr(table[name], "check"):
            _named(name, table[name].check, image_shape, its)


def _named(name: str, call: Callable[..., None], *arguments: Any) -> None:
    """Make a check of an architecture; a ValueError gets the architecture's name in front of its message."""
    try:
        call(*arguments)
    except ValueError as error:
        raise ValueError(f"{name} {error}") from None


class Growing(nn.Module):
    """A network for progressive growing: the size of its images doubles with each stage.

    Attributes:
        stage: the current stage, from 0 (smallest images) to `last_stage` (largest images). It starts at `last_stage`
            and is saved in the state dict.
        alpha: how far the current stage is faded in, in [0, 1]. At 0 the network computes what the previous stage
            computes, at 1 only the current stage counts. It is a scalar buffer, so the state dict holds it.
        last_stage: the number of the last stage.
    """

    alpha: Tensor
    last_stage: int

    def __init__(self, last: int) -> None:
        super().__init__()
        self.stage = self.last_stage = last
        self.register_buffer("alpha", torch.ones(()))

    def unused(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that the current stage does not use."""
        raise NotImplementedError

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.stage)

    def set_extra_state(self, state: Tensor) -> None:
        if state.numel() != 1 or not 0 <= int(state) <= self.last_stage:
            raise RuntimeError(f"stage {state.tolist()} is not one of 0 to {self.last_stage}")
        self.stage = int(state)
