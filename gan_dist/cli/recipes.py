"""`gan-dist recipes [DIR]`: list the recipes, or the configs in a directory, each with a line on what it trains."""

from __future__ import annotations

from pathlib import Path

from gan_dist.cli.arguments import Parser, path
from gan_dist.errors import ConfigError, escaped
from gan_dist.installed import RECIPES
from gan_dist.settings.files import read_text


def recipes(arguments: list[str]) -> int:
    """Print the name of each recipe, or the path of each config, and its first line if that is a comment."""
    parser = Parser("gan-dist recipes", description="List configs and what each of them trains.")
    parser.add_argument("dir", type=path, nargs="?", help="directory (default: the recipes that gan-dist train knows)")
    folder: Path | None = parser.parse_args(arguments).dir
    names = {file: str(file) if folder else file.stem for file in sorted((folder or RECIPES).glob("*.yaml"))}
    if not names:
        raise ConfigError(f"{folder or RECIPES}: no *.yaml there; name the directory of your configs")
    width = max(map(len, names.values()))
    for file, name in names.items():
        try:
            first, *_ = read_text(file).splitlines() or [""]
        except (OSError, ValueError) as error:
            first = f"# cannot be read: {error}"
        about = first.lstrip("# ") if first.startswith("#") else ""
        print(escaped(f"{name:<{width}}  {about}".rstrip()))
    return 0
