"""Download and check what a run needs."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from gan_dist.data.datasets import describe
from gan_dist.data.folder import ImageFiles
from gan_dist.data.remarks import remarks
from gan_dist.data.shared import load_shared
from gan_dist.errors import UserError
from gan_dist.metrics import NoFigure, Reference
from gan_dist.parallel.distributed import Distributed
from gan_dist.parts import load_plugins
from gan_dist.settings.schema import Config
from gan_dist.wiring.checks import check_parts
from gan_dist.wiring.data import cache_dir, registered_dataset, source_of
from gan_dist.wiring.kinds import kind_of
from gan_dist.wiring.parts import check_names, named_parts

log = logging.getLogger(__name__)

NAMED = 10  # so many images that cannot be read are named


def prefetch(config: Config) -> Iterator[str]:
    """Download and check everything that a run needs. Yields a line about the data set and one about the extractor.

    Raises:
        UserError: a download failed, or a file is damaged.
    """
    load_plugins(config.plugins)
    check_names(named_parts(config))
    dist, kind = Distributed("fp32", cpu=True), kind_of(config.data)
    source = source_of(config.data, registered_dataset(config.data))
    info = describe(source)
    check_parts(config, info, dist)
    dataset, key = load_shared(source, info, dist, None)
    good = dataset.count_readable()
    files = dataset if isinstance(dataset, ImageFiles) else dataset.files
    if files:
        for i in dataset.unreadable[:NAMED]:
            log.warning("%s", files.why(i))
    for remark in remarks(dataset, info):
        log.warning("data.root=%s: %s", source.root, remark)
    if good != info.num_images and config.data.name != "folder":
        raise UserError(f"data.name={config.data.name}: only {good} of {info.num_images} images can be read")
    yield f"data     {config.data.name}: {kind.describe(config, info, good)}"
    if config.metrics.every_kimg:
        try:
            extractor = kind.prepare_extractor(config, Reference(dataset, info, key, None), dist)
        except NoFigure as error:
            yield f"metrics  none: {error}"
        else:
            if extractor:
                yield f"metrics  {extractor} in {cache_dir().resolve()}"
