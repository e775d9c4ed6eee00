"""Record the metrics and pictures of a run in its directory and in Weights & Biases (W&B). Main process only."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image

from gan_dist.errors import UserError
from gan_dist.files import open_regular, open_to_append, replacing
from gan_dist.place import Place

log = logging.getLogger(__name__)


MOST_METRICS, MOST_LINE = 2**32, 2**20  # largest size of a `metrics.jsonl` and of a line in it, in bytes
Outcome = Literal["finished", "stopped", "failed"]  # "stopped" means: by a signal, and it can be resumed


class Tracker(Protocol):
    """Records metrics and pictures. It never lets the training loop wait for a network connection.

    A method may raise UserError to end the run. `Trackers` catches and logs every other error.
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


def number(value: Any) -> float | None:
    """Return a finite number of a JSON file as a float; None for anything else."""
    try:
        return float(value) if type(value) in (int, float) and math.isfinite(value) else None
    except OverflowError:  # a whole number of hundreds of digits
        return None


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects in a `metrics.jsonl`, one per line; none if there is no such file.

    The file may have hundreds of megabytes: only one line at a time is in memory. A line is left out if it is not a
    JSON object with a number `kimg`, or longer than MOST_LINE. A crash can leave such an incomplete line.

    Raises:
        OSError: it cannot be read, is no regular file, or is larger than MOST_METRICS.
    """
    return (values for _, values in _lines(path))


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield the lines that `read_metrics` does not leave out, without the line break, and the objects in them."""
    try:
        file = open_regular(path, MOST_METRICS)
    except FileNotFoundError:
        return
    with file:
        while text := file.readline(MOST_LINE):
            try:
                values = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if isinstance(values, dict) and number(values.get("kimg")) is not None:
                yield text.rstrip(b"\n"), values


def append_line(path: Path, line: str) -> None:
    """Add a line to a text file. If a crash or a full disk has cut the last line, the new one does not continue it."""
    with open_to_append(path) as file:
        if file.tell():
            with open_regular(path) as before:
                before.seek(-1, os.SEEK_END)
                line = line if before.read(1) == b"\n" else f"\n{line}"
        file.write(f"{line}\n".encode())


def as_json(values: dict[str, Any]) -> str:
    """Return values as a JSON object in one line. JSON has no numbers that are not finite, so they become null."""
    return json.dumps({k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()})


class LocalTracker:
    """Writes `metrics.jsonl`, one JSON object per line, and `samples/<name>-<kimg>.png` into the run directory.

    Args:
        run_dir: the run directory.
        nimg: number of images seen so far; lines in `metrics.jsonl` beyond it are deleted.

    Raises:
        UserError: the directory cannot be written to; later, in all methods, if it was moved meanwhile.
    """

    def __init__(self, run_dir: Path, nimg: int) -> None:
        self.metrics = run_dir / "metrics.jsonl"
        self.samples = run_dir / "samples"
        try:
            self._place = Place(run_dir)
            self.samples.mkdir(exist_ok=True)
            self.rewind(nimg)
        except OSError as error:
            raise UserError(f"run.dir={run_dir}: cannot write there ({error.strerror})") from error

    def rewind(self, nimg: int) -> None:
        """Delete the lines beyond `nimg`, because the run goes on from an earlier checkpoint and writes them again."""
        self._place.check()
        with replacing(self.metrics) as file:
            file.writelines(text + b"\n" for text, values in _lines(self.metrics) if values["kimg"] <= nimg / 1000)

    def scalars(self, nimg: int, values: dict[str, Any]) -> None:
        self._place.check()
        append_line(self.metrics, as_json({"kimg": nimg / 1000, **values}))

    def image(self, nimg: int, name: str, picture: np.ndarray) -> None:
        self._place.check()
        with replacing(self.samples / f"{name}-{nimg / 1000:010.3f}.png", flush=False) as file:
            Image.fromarray(picture.squeeze()).save(file, "PNG")

    def finish(self, outcome: Outcome, artifact: Path | None = None) -> None:
        pass


class Trackers:
    """Several trackers used as one. Only the main process has trackers; in the others the sequence is empty.

    Attributes:
        trackers: the trackers. They may be replaced: those of a run start when nothing can refuse the run any more.
    """

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
        except UserError:
            raise
        except Exception as error:  # for example a full disk: one line or picture is lost, but training goes on
            log.warning("could not record: %s", error)
