"""Architectures: one file each, its name is the value of `model.name`.

An architecture's file has

- `check(image_shape, g_widths, d_widths)`: raises ValueError if it can't make this, with the nearest that it can;
- `Generator(image_shape, num_classes, z_dim, widths)`: `G(z, y)` maps latents (N, z_dim) and labels (N,) to images
  (N, C, H, W) in [-1, 1], and has the attributes `image_shape`, `num_classes` and `z_dim`;
- `Discriminator(image_shape, num_classes, widths)`: `D(x, y)` maps images and labels to logits (N,).

`num_classes` 0 makes an unconditional network, which takes no y. `widths` [] are the architecture's own. Keyword-only
arguments with defaults are what `model.g_args` and `model.d_args` can set.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def names() -> list[str]:
    """The architectures there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def architecture(name: str) -> ModuleType:
    """The module of an architecture."""
    return importlib.import_module(f"{__name__}.{name}")
