"""What is installed beside the code: recipes, launch files and job scripts. In the repository they are at its top."""

from __future__ import annotations

from pathlib import Path

SHARE = Path(__file__).parent / "share"  # in the repository it holds links to the folders, so that there is one copy
RECIPES = SHARE / "configs"


def find_config(path: Path) -> Path:
    """Return the config file that a path names: the file itself, or, if there is none, the recipe of this name.

    Args:
        path: for example `my/config.yaml`, or `dcgan_fashion_mnist`.
    """
    recipe = RECIPES / f"{path}.yaml"
    return recipe if len(path.parts) == 1 and recipe.is_file() and not (path.is_file() or path.is_fifo()) else path
