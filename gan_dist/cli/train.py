"""`gan-dist train [CONFIG.yaml] [key.sub=value …]`."""

from __future__ import annotations

from gan_dist.cli.arguments import read_config
from gan_dist.parallel.signals import StopSignals
from gan_dist.settings.schema import settings_help

USAGE = """\
usage: python train.py [CONFIG.yaml] [key.sub=value ...]
       gan-dist train [CONFIG.yaml] [key.sub=value ...]

Without a CONFIG the defaults train a class-conditional GAN on handwritten digits; with run.dir and resume, the
config of that run is taken. An override beats the file, the file beats the defaults.

  python train.py configs/dcgan_fashion_mnist.yaml train.kimg=500 data.root=/path
  python train.py run.dir=runs/mine resume=latest train.kimg=1000

Exit status: 0 finished; 75 stopped by a signal, resumable; 2 bad settings; 1 failed.

Settings and their defaults:
"""

FINISHED, STOPPED = 0, 75  # 75: sysexits.h's EX_TEMPFAIL, try again


def train(arguments: list[str]) -> int:
    """Parse and check the settings, and train."""
    if any(argument in ("-h", "--help") for argument in arguments):
        print(USAGE + settings_help())
        return 0
    config = read_config(arguments)
    with StopSignals() as signals:
        from gan_dist import run  # importing torch takes seconds: what can be refused without it is refused before

        return FINISHED if run.train(config, signals) else STOPPED
