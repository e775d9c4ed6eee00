"""`gan-dist init DIR`: write launch files and job scripts, which are then to be adapted to a cluster."""

from __future__ import annotations

import shutil

from gan_dist.cli.arguments import Parser, path
from gan_dist.errors import ConfigError, escaped
from gan_dist.installed import SHARE

ABOUT = {
    "launch": "accelerate launch --config_file launch/one_node.yaml -m gan_dist train RECIPE",
    "slurm": "sbatch --nodes=2 --gpus-per-node=4 slurm/train.sbatch RECIPE",
}


def init(arguments: list[str]) -> int:
    """Copy the folders `launch` and `slurm` into a directory, and print how each is used from there."""
    parser = Parser(
        "gan-dist init",
        description="Write launch files for Accelerate and job scripts for SLURM into DIR/launch and DIR/slurm.",
    )
    parser.add_argument("dir", type=path, help="directory, which is made if it does not exist")
    folder = parser.parse_args(arguments).dir
    for name in ABOUT:
        if (folder / name).exists():
            raise ConfigError(f"{folder / name} is already there: remove it, or name another directory")
    for name, use in ABOUT.items():
        shutil.copytree(SHARE / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        print(escaped(f"{folder / name}: {use}"))
    return 0
