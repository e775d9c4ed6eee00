"""`python -m gan_dist COMMAND …`, which `accelerate launch -m gan_dist …` starts in several processes."""

import sys

from gan_dist.cli import main

if __name__ == "__main__":
    sys.exit(main())
