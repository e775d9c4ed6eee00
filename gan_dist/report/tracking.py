"""Record the metrics and pictures of a run in its directory and in Weights & Biases (W&B). Main process only."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image

from gan_dist.errors import UserError

log = logging.getLogger(__name__)


Outcome = Literal["finished", "stopped", "failed"]  # "stopped" means: by a signal, and it can be resumed


class Tracker(Protocol):
    """Records metrics and pictures. It never lets the training loop wait for a network connection.

    A method may raise OSError, which `Trackers` catches; it raises no other error.
    """

    def scalars(self, nimg: int, values: dict[str, Any]) -> None:
        """Record values by name, measured after `nimg` images."""

    def image(self, nimg: int, name: str, picture: np.ndarray) -> None:
        """Record a picture, uint8 (H, W, C), made after `nimg` images."""

    def rewind(self, nimg: int) -> None:
        """The run has gone back to the checkpoint at `nimg` images: delete what was recorded after it, if possible."""

    def finish(self, outcome: Outcome, artifact: Path | None = None) -> None:
        """End the recording. This is the last call.

        Args:
            outcome: how the run ended.
            artifact: directory of the final model, to be uploaded; None for no upload.
        """


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the objects in a `metrics.jsonl`, one per line; [] if there is no such file.

    A line that is not a JSON object with a number `kimg` is left out. A crash can leave such an incomplete line.
    """
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and isinstance(line.get("kimg"), int | float):
            lines.append(line)
    return lines


class LocalTracker:
    """Writes `metrics.jsonl`, one JSON object per line, and `samples/<name>-<kimg>.png` into the run directory.

    Args:
        run_dir: the run directory.
        nimg: number of images seen so far; lines in `metrics.jsonl` beyond it are deleted.

    Raises:
        UserError: the directory cannot be written to.
    """

    def __init__(self, run_dir: Path, nimg: int) -> None:
        self.metrics = run_dir / "metrics.jsonl"
        self.samples = run_dir / "samples"
        try:
            self.samples.mkdir(exist_ok=True)
            self.rewind(nimg)
        except OSError as error:
            raise UserError(f"run.dir={run_dir}: cannot write there ({error.strerror})") from error

    def rewind(self, nimg: int) -> None:
        """Delete the lines beyond `nimg`, because the run goes on from an earlier checkpoint and writes them again."""
        kept = [line for line in read_metrics(self.metrics) if line["kimg"] <= nimg / 1000]
        temporary = self.metrics.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        temporary.rename(self.metrics)

    def scalars(self, nimg: int, values: dict[str, Any]) -> None:
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kimg": nimg / 1000, **finite}) + "\n")

    def image(self, nimg: int, name: str, picture: np.ndarray) -> None:
        Image.fromarray(picture.squeeze()).save(self.samples / f"{name}-{nimg / 1000:010.3f}.png")

    def finish(self, outcome: Outcome, artifact: Path | None = None) -> None:
        pass


class Trackers:
    """Several trackers used as one. Only the main process has trackers; in the others the sequence is empty."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = trackers

    def scalars(self, nimg: int, values: dict[str, Any]) -> None:
        for tracker in self.trackers:
            self._guard(tracker.scalars, nimg, values)

    def image(self, nimg: int, name: str, picture: np.ndarray) -> None:
        for tracker in self.trackers:
            self._guard(tracker.image, nimg, name, picture)

    def rewind(self, nimg: int) -> None:
        for tracker in self.trackers:
            self._guard(tracker.rewind, nimg)

    def finish(self, outcome: Outcome, artifact: Path | None = None) -> None:
        for tracker in self.trackers:
            self._guard(tracker.finish, outcome, artifact)

    @staticmethod
    def _guard(call: Callable[..., None], *arguments: Any) -> None:
        try:
            call(*arguments)
        except OSError as error:  # if the disk is full, one line or picture is lost, but training goes on
            log.warning("could not record: %s", error)
