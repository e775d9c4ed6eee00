"""Which precision a run has: what its config says, or on a GPU what the recipe is meant for."""

from __future__ import annotations

import os
from typing import get_args

from gan_dist.errors import ConfigError
from gan_dist.settings.schema import Precision, Train


def resolve(train: Train, on_gpu: bool) -> Precision:
    """fp64, fp32, tf32, bf16 or fp16: `train.precision`, where "auto" is `train.gpu_precision` on a GPU, else fp32.

    Accelerate's launcher always hands down a precision, and "no" where nobody chose one. That is no choice.

    Raises:
        ConfigError: the launcher was told another precision than the run has.
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
