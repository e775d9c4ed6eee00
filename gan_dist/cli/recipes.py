"""`gan-dist recipes [DIR]`: the configs there are, each with a line on what it trains."""

from __future__ import annotations

import argparse
from pathlib import Path

from gan_dist.errors import ConfigError


def recipes(arguments: list[str]) -> int:
    """Print each config's path and its first comment."""
    parser = argparse.ArgumentParser("gan-dist recipes", description="List configs, each with what it trains.")
    parser.add_argument("dir", type=Path, nargs="?", default=Path("configs"), help="directory (default: configs)")
    folder: Path = parser.parse_args(arguments).dir
    paths = sorted(folder.glob("*.yaml"))
    if not paths:
        raise ConfigError(f"{folder}: no *.yaml there; name the directory of your configs, or go to a clone's top")
    width = max(len(str(path)) for path in paths)
    for path in paths:
        first, *_ = path.read_text(errors="replace").splitlines() or [""]
        print(f"{path!s:<{width}}  {first.lstrip('# ') if first.startswith('#') else ''}".rstrip())
    return 0
