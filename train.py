"""`python train.py CONFIG key=value …` and `accelerate launch train.py …` do the same as `gan-dist train`."""

import sys

from gan_dist.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
