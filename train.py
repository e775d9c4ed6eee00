"""Thin entry: `python train.py CONFIG key=value …`, or `accelerate launch train.py …`; the same as `gan-dist train`."""

import sys

from gan_dist.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
