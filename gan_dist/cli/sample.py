"""`gan-dist sample RUN`: generate images with a trained run."""

from __future__ import annotations

import argparse
from pathlib import Path

from gan_dist.errors import ConfigError


def sample(arguments: list[str]) -> int:
    """Parse the arguments, generate images, and write them as PNG files."""
    parser = argparse.ArgumentParser(
        "gan-dist sample", description="Write images of a run's averaged generator G_ema as PNG files."
    )
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--n", type=int, default=64, help="number of images (default 64)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the latents (default 0)")
    parser.add_argument("--classes", help="labels of the images, in turn, for example 3,7 (default: all)")
    parser.add_argument("--checkpoint", default="latest", help="latest (default), best, or a name in RUN/checkpoints")
    parser.add_argument("--out", type=Path, help="directory to write to (default: RUN/generated)")
    parser.add_argument("--grid", action="store_true", help="write one picture of all images, not one file per image")
    parser.add_argument("--device", default="cpu", help="device that computes, for example cuda (default cpu)")
    options = parser.parse_args(arguments)
    if options.n < 1 or not 0 <= options.seed < 2**63:
        raise ConfigError(f"--n={options.n} must be at least 1, and --seed={options.seed} from 0 to {2**63 - 1}")

    import gan_dist

    G = gan_dist.load_generator(options.run, options.checkpoint, options.device)
    if tuple(G.image_shape)[1:] == (1, 1):  # type: ignore[arg-type]
        raise ConfigError(f"{options.run}: its generator makes points, not images; RUN/samples has pictures of them")
    num_classes: int = G.num_classes  # type: ignore[assignment]
    classes = _classes(options.classes, num_classes)
    out: Path = options.out or options.run / "generated"
    from gan_dist.checkpoint.lock import refuse_links
    from gan_dist.report.pictures import write_grid, write_images
    from gan_dist.sampling import generate

    if not options.out:
        refuse_links(options.run)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{out}: no directory to write to ({error.strerror}); name another one with --out") from None
    images = generate(G, options.n, options.seed, classes)
    if options.grid:
        print(write_grid(images, classes, out))
    else:
        write_images(images, out)
        print(f"{options.n} images in {out}")
    return 0


def _classes(text: str | None, num_classes: int) -> list[int]:
    if text is None:
        return list(range(num_classes))
    if not num_classes:
        raise ConfigError(f"--classes={text}: this run is unconditional; leave it out")
    try:
        classes = [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--classes={text} must be labels separated by commas, for example 3,7") from None
    wrong = [label for label in classes if not 0 <= label < num_classes]
    if wrong:
        raise ConfigError(f"--classes={text}: {wrong[0]} is none of the labels 0 to {num_classes - 1}")
    return classes
