"""`gan-dist prefetch [CONFIG.yaml] [key.sub=value …]`: what a run needs from elsewhere, fetched before it."""

from __future__ import annotations

from gan_dist.cli.arguments import read_config

USAGE = """\
usage: gan-dist prefetch [CONFIG.yaml] [key.sub=value ...]

Bring what `gan-dist train` with the same arguments needs to where it looks for it, so that the run needs no network:
the data set to data.root, the networks for metrics to $GAN_DIST_CACHE. Everything is read and checked; what is there
already is not fetched again. Run it once on a login node, with both on a file system that the other nodes share.
"""


def prefetch(arguments: list[str]) -> int:
    """Parse, fetch, say what is there."""
    if any(argument in ("-h", "--help") for argument in arguments):
        print(USAGE, end="")
        return 0
    config = read_config(arguments)
    from gan_dist import run
    from gan_dist.report.log import log_to

    log_to(None)
    for line in run.prefetch(config):
        print(line, flush=True)
    print("nothing more is needed from the network")
    return 0
