"""`gan-dist train [CONFIG.yaml] [key.sub=value …]`: train a run."""

from __future__ import annotations

from gan_dist.parallel.signals import StopSignals
from gan_dist.parts import describe_foreign, load_plugins
from gan_dist.settings.config import plugins_in
from gan_dist.settings.schema import settings_help
from gan_dist.wiring.words import read_words

USAGE = """\
usage: python train.py [CONFIG] [key.sub=value ...]
       gan-dist train [CONFIG] [key.sub=value ...]

CONFIG is a YAML file, or the name of a recipe, which gan-dist recipes lists. Without it the recipe is digits: a
class-conditional GAN with loss.r1_gamma=1 on handwritten digits. A setting key.sub=value replaces the value in the
file, and the file replaces the defaults. If run.dir and resume name an existing run, its own settings count instead of
the file.

A text is taken as it is. A list is written [a,b]. A mapping is written {a: 1, b: text} and is added to the one in the
file; {} removes the file's. An argument is a config file if it has no =, or if it ends in .yaml or .yml and no setting
is before the =. It may be a pipe. A ~ at the beginning of a path is the home directory.

  python train.py configs/dcgan_fashion_mnist.yaml train.kimg=500 data.root=/path
  python train.py run.dir=runs/mine resume=latest train.kimg=1000

Exit status: 0 if training is finished, 75 if a signal stopped it (it can be resumed), 2 for wrong settings, 1 for any
other failure.

Settings and their defaults:
"""

FINISHED, STOPPED = 0, 75  # 75 is EX_TEMPFAIL in sysexits.h, which asks the caller to try again


def train(arguments: list[str]) -> int:
    """Parse and check the settings, then train."""
    if any(argument in ("-h", "--help") for argument in arguments):
        load_plugins(plugins_in([argument for argument in arguments if argument.startswith("plugins=")]))
        others = describe_foreign()
        print(USAGE + settings_help())
        print(f"\nParts of plugins and of installed packages:\n{others}" if others else "", end="")
        return 0
    asked = read_words(arguments)
    with StopSignals() as signals:
        # This import takes seconds, because it imports torch. Wrong settings are refused before it.
        from gan_dist import run
        from gan_dist.parallel.peers import Peers

        Peers.ends_process = True
        return FINISHED if run.train(asked, signals) else STOPPED
