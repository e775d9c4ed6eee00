"""Architectures of G and D. Each architecture is one file here, and the file's name is the value of `model.name`.

An architecture's file defines

- `check(image_shape, g_widths, d_widths)`, which raises ValueError if the architecture cannot make these networks; the
  message names the nearest valid value;
- `Generator(image_shape, num_classes, z_dim, widths)`: `G(z, y)` maps latents z (N, z_dim) and labels y (N,) to images
  (N, C, H, W) in [-1, 1]. G has the attributes `image_shape`, `num_classes` and `z_dim`;
- `Discriminator(image_shape, num_classes, widths)`: `D(x, y)` maps images x (N, C, H, W) and labels y (N,) to logits
  (N,).

It may define `blocks(D)`, which returns the parts of a Discriminator that can be frozen, from the image on; see
`init.freeze_D`.

If `num_classes` is 0, the network is unconditional and takes no y. If `widths` is empty, the architecture uses its
default widths. The settings `model.g_args` and `model.d_args` set the keyword-only arguments of the two classes.
Networks for progressive growing are subclasses of `Growing`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from types import ModuleType

import torch
from torch import Tensor, nn


def names() -> list[str]:
    """Return the names of all architectures, sorted: the valid values of `model.name`."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def architecture(name: str) -> ModuleType:
    """Import and return the module of the architecture `name`, which must be one of `names()`."""
    return importlib.import_module(f"{__name__}.{name}")


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
