"""Choose the precision of a run from `train.precision`, `train.gpu_precision` and the device."""

from __future__ import annotations

import os
from typing import get_args

from gan_dist.errors import ConfigError
from gan_dist.settings.schema import Precision, Train


def resolve(train: Train, on_gpu: bool) -> Precision:
    """Return the precision of a run: "fp64", "fp32", "tf32", "bf16" or "fp16".

    It is `train.precision`. If that is "auto", it is `train.gpu_precision` on a GPU and fp32 on a CPU.

    Args:
        train: the settings.
        on_gpu: the run computes on a GPU.

    Raises:
        ConfigError: `accelerate launch` was started with another precision than the run has. Its default
            `mixed_precision=no` agrees with every precision.
    """
    automatic = train.gpu_precision if on_gpu else "fp32"
    chosen = automatic if train.precision == "auto" else train.precision
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched not in ("no", chosen):
        config = f"train.precision={train.precision}" + (f" means {chosen} here" if train.precision == "auto" else "")
        instead = f", or set train.precision={launched}" if launched in get_args(Precision) else ""
        raise ConfigError(
            f"accelerate launch was told mixed_precision={launched}, but {config}: launch with "
            f"mixed_precision=no{instead}"
        )
    return chosen
