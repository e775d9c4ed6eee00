"""What a user should know about the images that were read."""

from __future__ import annotations

import numpy as np

from gan_dist.data import DataInfo
from gan_dist.data.folder import BRIGHT, DEEP, SEVERAL, UNREADABLE, ImageFiles
from gan_dist.data.in_memory import Images


def remarks(dataset: Images, info: DataInfo) -> list[str]:
    """Return one line for each thing that is probably not what the user wants.

    Args:
        dataset: the data set. If it is read file by file, the lines are about the images that were read so far.
        info: its properties.
    """
    files = dataset if isinstance(dataset, ImageFiles) else dataset.files
    if files is None:
        return []
    notes, lines = files.notes, []
    read = notes[(notes != 0) & (notes & UNREADABLE == 0)]
    of = f"of the {len(read)} images that were read"
    if several := int((read & SEVERAL != 0).sum()):
        first = files.files.name(int(np.flatnonzero(notes & SEVERAL)[0]))
        lines.append(f"{several} {of} are in files with several pictures, for example {first}; only the first is used")
    deep = read[read & DEEP != 0]
    if len(deep) and not (deep & BRIGHT).any():
        lines.append(
            f"{len(deep)} {of} have 16 bits, but no value is above 1/8 of the range, so they are almost black; if they "
            "have 12 bits, multiply the values by 16"
        )
    if info.class_names and not isinstance(dataset, ImageFiles):
        good = np.delete(files.files.labels, dataset.unreadable)
        for label in np.flatnonzero(np.bincount(good, minlength=info.num_classes) == 0):
            lines.append(f"no image of the class {info.class_names[label]} can be read")
    return lines
