"""`gan-dist sample RUN`: generate images with a trained run."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

from gan_dist.cli.arguments import Parser, path, whole
from gan_dist.errors import ConfigError, escaped
from gan_dist.wiring.words import expanded


def sample(arguments: list[str]) -> int:
    """Parse the arguments, generate images, and write them as PNG files."""
    options = _options(arguments)
    if options.n < 1 or not 0 <= options.seed < 2**63:
        raise ConfigError(f"--n={options.n} must be at least 1, and --seed={options.seed} from 0 to {2**63 - 1}")

    from gan_dist.parts import load_plugins
    from gan_dist.settings.config import plugins_in
    from gan_dist.wiring.networks import find_generator, on_device

    load_plugins(plugins_in(options.settings))
    saved = find_generator(options.run, options.checkpoint)
    G = on_device(saved.make(), options.device)
    if tuple(G.image_shape)[1:] == (1, 1):  # type: ignore[arg-type]
        raise ConfigError(f"{options.run}: its generator makes points, not images; RUN/samples has pictures of them")
    from gan_dist.checkpoint.lock import refuse_links
    from gan_dist.metrics import weights_hash
    from gan_dist.report.pictures import write_grid, write_images
    from gan_dist.report.sample_folder import replaced_folder
    from gan_dist.sampling import find_labels, generate

    classes = find_labels(G, _split(options.classes, G.class_names), "--classes")  # type: ignore[arg-type]
    if not options.out:
        refuse_links(options.run)
    chosen = classes if options.classes else []
    name = _folder_name(saved.path.name, options.seed, chosen) + ("-grid" if options.grid else "")
    out: Path = options.out.resolve() if options.out else options.run / "generated" / name
    origin = (
        f"checkpoint {saved.path.name} (G_ema {weights_hash(G)[:16]}), seed {options.seed}, "
        f"classes {','.join(map(str, chosen)) or 'all'}"
    )
    images = generate(G, options.n, options.seed, classes)
    with replaced_folder(out, origin) as folder:
        if options.grid:
            write_grid(images, classes, folder, origin)
        else:
            write_images(images, folder, origin)
    shown = options.out or out
    print(escaped(str(shown / "grid.png") if options.grid else f"{options.n} images in {shown}"))
    return 0


def _options(arguments: list[str]) -> argparse.Namespace:
    """Parse the arguments."""
    parser = Parser("gan-dist sample", description="Write images of a run's averaged generator G_ema as PNG files.")
    parser.add_argument("run", type=path, help="run directory")
    parser.add_argument("--n", type=whole, default=64, help="number of images (default 64)")
    parser.add_argument("--seed", type=whole, default=0, help="seed of the latents (default 0)")
    parser.add_argument("--classes", help="labels or names of classes, in turn, for example 3,7 (default: all)")
    parser.add_argument(
        "--checkpoint",
        type=expanded,
        default="latest",
        help="latest (default), best, a name in RUN/checkpoints, or a path",
    )
    parser.add_argument(
        "--out",
        type=path,
        help="folder to write to; it must hold no other files (default: a folder in RUN/generated for this checkpoint, "
        "seed and choice of classes)",
    )
    parser.add_argument("--grid", action="store_true", help="write one picture of all images, not one file per image")
    parser.add_argument("--device", default="cpu", help="device that computes, for example cuda (default cpu)")
    parser.add_argument("settings", nargs="*", help="plugins=[module], if the run's networks are a user's parts")
    options = parser.parse_intermixed_args(arguments)
    if wrong := [word for word in options.settings if not word.startswith("plugins=")]:
        raise ConfigError(f"{wrong[0]}: the only setting that can be named here is plugins")
    return options


def _folder_name(checkpoint: str, seed: int, classes: list[int]) -> str:
    """Return the name of the folder for a checkpoint, a seed and the classes that were chosen; [] for all."""
    text = ",".join(map(str, classes))
    if len(text) > 100:  # a file name has at most 255 bytes
        text = f"-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    return f"{checkpoint}-seed{seed}" + (f"-classes{text}" if text else "")


def _split(text: str | None, names: list[str]) -> list[str] | None:
    """Return the classes that `--classes` lists; None for all. A text that is the name of a class is not a list."""
    return text if text is None else [text] if text in names else text.split(",")
