"""`gan-dist prefetch [CONFIG.yaml] [key.sub=value …]`: download what a run needs before the run starts."""

from __future__ import annotations

from gan_dist.cli.arguments import read_config
from gan_dist.errors import escaped

USAGE = """\
usage: gan-dist prefetch [CONFIG.yaml] [key.sub=value ...]

Download what `gan-dist train` with the same arguments needs, so that the run itself needs no network. The data set goes
to data.root, and the networks for metrics go to $GAN_DIST_CACHE. All files are read and checked; files that exist
already are not downloaded again. Run this command once on a login node. Both directories must be on a file system that
all nodes share.
"""


def prefetch(arguments: list[str]) -> int:
    """Parse the arguments, download, and print one line about each part."""
    if any(argument in ("-h", "--help") for argument in arguments):
        print(USAGE, end="")
        return 0
    config = read_config(arguments)
    from gan_dist import prefetch
    from gan_dist.report.log import log_to

    log_to(None)
    for line in prefetch.prefetch(config):
        print(escaped(line), flush=True)
    print("nothing more is needed from the network")
    return 0
