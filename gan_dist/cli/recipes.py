"""`gan-dist recipes [DIR]`: list the configs in a directory, each with a line that says what it trains."""

from __future__ import annotations

from pathlib import Path

from gan_dist.cli.arguments import Parser, path
from gan_dist.errors import ConfigError, escaped
from gan_dist.settings.files import read_text


def recipes(arguments: list[str]) -> int:
    """Print the path of each config, and its first line if that is a comment."""
    parser = Parser("gan-dist recipes", description="List configs and what each of them trains.")
    parser.add_argument("dir", type=path, nargs="?", default=Path("configs"), help="directory (default: configs)")
    folder: Path = parser.parse_args(arguments).dir
    paths = sorted(folder.glob("*.yaml"))
    if not paths:
        raise ConfigError(
            f"{folder}: no *.yaml there; name the directory of your configs, or start in a clone of gan_dist"
        )
    width = max(len(str(file)) for file in paths)
    for file in paths:
        try:
            first, *_ = read_text(file).splitlines() or [""]
        except (OSError, ValueError) as error:
            first = f"# cannot be read: {error}"
        about = first.lstrip("# ") if first.startswith("#") else ""
        print(escaped(f"{file!s:<{width}}  {about}".rstrip()))
    return 0
