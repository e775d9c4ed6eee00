"""Architectures: one file each, its name is the value of `model.name`.

An architecture's file has

- `check(image_shape, g_widths, d_widths)`: raises ValueError if it can't make this, with the nearest that it can;
- `Generator(image_shape, num_classes, z_dim, widths)`: `G(z, y)` maps latents (N, z_dim) and labels (N,) to images
  (N, C, H, W) in [-1, 1], and has the attributes `image_shape`, `num_classes` and `z_dim`;
- `Discriminator(image_shape, num_classes, widths)`: `D(x, y)` maps images and labels to logits (N,).

Networks that grow are `Growing`.

`num_classes` 0 makes an unconditional network, which takes no y. `widths` [] are the architecture's own. Keyword-only
arguments with defaults are what `model.g_args` and `model.d_args` can set.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from types import ModuleType

import torch
from torch import Tensor, nn


def names() -> list[str]:
    """The architectures there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def architecture(name: str) -> ModuleType:
    """The module of an architecture."""
    return importlib.import_module(f"{__name__}.{name}")


class Growing(nn.Module):
    """A network that doubles its size stage by stage.

    Attributes:
        stage: 0 (the smallest size) to `last` (the whole network, and the default); in the state dict too.
        alpha: a buffer, how far the stage is faded in: at 0 the network is that of the stage before, at 1 this one's.
    """

    alpha: Tensor
    last_stage: int

    def __init__(self, last: int) -> None:
        super().__init__()
        self.stage = self.last_stage = last
        self.register_buffer("alpha", torch.ones(()))

    def unused(self) -> Iterator[nn.Parameter]:
        """The parameters that this stage does without."""
        raise NotImplementedError

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.stage)

    def set_extra_state(self, state: Tensor) -> None:
        if state.numel() != 1 or not 0 <= int(state) <= self.last_stage:
            raise RuntimeError(f"stage {state.tolist()} is not one of 0 to {self.last_stage}")
        self.stage = int(state)
