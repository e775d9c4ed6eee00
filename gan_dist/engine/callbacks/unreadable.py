"""Reports which images of the data set cannot be read."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from gan_dist.checkpoint.state import State
from gan_dist.data.folder import ImageFiles
from gan_dist.data.in_memory import Images, ImageTensor
from gan_dist.data.key import data_key
from gan_dist.parallel.distributed import Distributed

log = logging.getLogger(__name__)

EXPLAINED = 3  # for so many images the log says what is wrong with them


class ReportUnreadable:
    """Names each unreadable image once: in a file in the run directory, the first ones also in the log.

    The main process learns from the others which images they could not read. Checkpoints record the numbers of these
    images, and the key of the data without them, so that a run goes on when the files have been mended.

    Args:
        every_nimg: number of images between two reports; the first is made at once.
        dataset: the data set.
        num_classes: its number of classes.
        facts: what checkpoints record; `unreadable` and `data_key` in it are kept up to date.
        path: the file in the run directory.
        dist: the processes; all make this object and call it together.
    """

    at_start = False
    at_end = True

    def __init__(
        self, every_nimg: int, dataset: Images, num_classes: int, facts: dict[str, Any], path: Path, dist: Distributed
    ) -> None:
        self.every_nimg = every_nimg
        self.dataset, self.num_classes, self.facts, self.path, self.dist = dataset, num_classes, facts, path, dist
        self._known: set[int] = set()
        self._report()

    def __call__(self, state: State) -> None:
        if not isinstance(self.dataset, ImageTensor):  # of images in memory, all is known from the start
            self._report()

    def _report(self) -> None:
        here = [i for i in self.dataset.unreadable if i not in self._known]
        # The number -1 is there because not all backends can gather tensors that are empty in all processes.
        new = set(self.dist.gather(torch.tensor([-1, *here])).tolist()) - {-1} - self._known
        self._known |= new
        if new and self.dist.is_main:
            self._record(sorted(new))

    def _record(self, new: list[int]) -> None:
        files = self.dataset.files if isinstance(self.dataset, ImageTensor) else self.dataset
        assert isinstance(files, ImageFiles)
        everything = sorted(self._known)
        self.facts["unreadable"] = everything
        self.facts["data_key"] = data_key(self.dataset, self.num_classes, without=everything)
        try:
            lines = (files.files.name(i).replace("\n", "\\n") + "\n" for i in everything)
            self.path.write_text("".join(lines), encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            log.warning("%s: cannot be written (%s)", self.path, error.strerror)
        reasons = "; ".join(files.why(i) for i in new[:EXPLAINED])
        log.warning(
            "%d images cannot be read, %d of %d so far; others, drawn at random, stand in for them; all are listed in "
            "%s: %s%s",
            len(new), len(everything), len(self.dataset), self.path, reasons, "; …" if len(new) > EXPLAINED else "",
        )  # fmt: skip
