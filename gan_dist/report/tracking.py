"""Where figures and pictures of a run go: its directory, and Weights & Biases. Main process only."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import queue
import re
import secrets
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image

from gan_dist.errors import UserError

log = logging.getLogger(__name__)


Outcome = Literal["finished", "stopped", "failed"]  # stopped: by a signal, to be resumed


class Tracker(Protocol):
    """Takes figures and pictures; never raises into the training loop and never makes it wait for a network."""

    def scalars(self, nimg: int, values: dict[str, Any]) -> None:
        """Values by name at `nimg` images seen."""

    def image(self, nimg: int, name: str, picture: np.ndarray) -> None:
        """A picture, uint8 (H, W, C)."""

    def rewind(self, nimg: int) -> None:
        """The run went back to `nimg` images seen."""

    def finish(self, outcome: Outcome, artifact: Path | None = None) -> None:
        """The last call. `artifact`: a directory to keep as the final model."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; one torn by a crash is left out."""
    lines = []
    for text in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and isinstance(line.get("kimg"), int | float):
            lines.append(line)
    return lines


class LocalTracker:
    """`metrics.jsonl`, one object a line, and `samples/<kimg>-<name>.png` in the run directory."""

    def __init__(self, run_dir: Path, nimg: int) -> None:
        """`nimg`: images seen so far.

        Raises:
            UserError: nothing can be written there.
        """
        self.metrics = run_dir / "metrics.jsonl"
        self.samples = run_dir / "samples"
        try:
            self.samples.mkdir(exist_ok=True)
            self.rewind(nimg)
        except OSError as error:
            raise UserError(f"run.dir={run_dir}: cannot write there ({error.strerror})") from error

    def rewind(self, nimg: int) -> None:
        """Leave out lines beyond `nimg`, written in a course of the run that is not this one."""
        kept = [line for line in read_metrics(self.metrics) if line["kimg"] <= nimg / 1000]
        temporary = self.metrics.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        temporary.rename(self.metrics)

    def scalars(self, nimg: int, values: dict[str, Any]) -> None:
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        with self.metrics.open("a") as file:
            file.write(json.dumps({"kimg": nimg / 1000, **finite}) + "\n")

    def image(self, nimg: int, name: str, picture: np.ndarray) -> None:
        Image.fromarray(picture.squeeze()).save(self.samples / f"{name}-{nimg / 1000:010.3f}.png")

    def finish(self, outcome: Outcome, artifact: Path | None = None) -> None:
        pass


class WandbTracker:
    """One W&B run for the whole run, resumes included: its id is kept in the run directory.

    A thread of its own talks to the library, so that a slow, dead or unreachable service costs training nothing. The
    first error is logged and ends the tracking, not the run.
    """

    INIT_SECONDS = 20.0  # how long to try to reach the service before the run is kept offline
    FINISH_SECONDS = 60.0  # how long the end of a finished run waits for W&B
    FAILED_SECONDS = 5.0  # how long that of a stopped or failed one does

    def __init__(self, run_dir: Path, mode: str, project: str, entity: str, name: str, config: dict[str, Any]) -> None:
        self._queue: queue.Queue[Callable[[Any], None] | None] = queue.Queue(maxsize=10_000)
        self._arguments: dict[str, Any] = {"project": project, "entity": entity or None, "name": name, "config": config}
        self._run_dir = run_dir
        self._mode = mode
        self._exit_code = 1
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def scalars(self, nimg: int, values: dict[str, Any]) -> None:
        self._put(lambda run: run.log({"kimg": nimg / 1000, **values}))

    def image(self, nimg: int, name: str, picture: np.ndarray) -> None:
        def send(run: Any) -> None:
            import wandb

            run.log({"kimg": nimg / 1000, name: wandb.Image(Image.fromarray(picture.squeeze()))})

        self._put(send)

    def rewind(self, nimg: int) -> None:
        pass

    def finish(self, outcome: Outcome, artifact: Path | None = None) -> None:
        def send(run: Any) -> None:
            import wandb

            model = wandb.Artifact(f"{run.id}-generator", type="model")
            model.add_dir(str(artifact))
            run.log_artifact(model)

        if artifact:
            self._put(send)
        if outcome == "stopped":
            self._put(lambda run: run.mark_preempting())
        self._exit_code = 0 if outcome == "finished" else 1
        self._put(None)
        seconds = self.FINISH_SECONDS if outcome == "finished" else self.FAILED_SECONDS
        self._thread.join(seconds)
        if self._thread.is_alive():
            log.warning("W&B did not finish within %.0f s; everything is in %s too", seconds, self._run_dir)

    def _put(self, item: Callable[[Any], None] | None) -> None:
        if self._thread.is_alive():
            try:
                self._queue.put_nowait(item)
            except queue.Full:
                log.warning("W&B does not keep up; a value was left out there")

    def _work(self) -> None:
        try:
            run = self._start()
            while (item := self._queue.get()) is not None:
                item(run)
            run.finish(exit_code=self._exit_code)
        except Exception as error:  # W&B's troubles are not the run's
            log.warning("W&B tracking ended (%s: %s); training goes on", type(error).__name__, error)
            with contextlib.suppress(Exception):  # its own exit hook would print a dead service's traceback
                import wandb

                wandb.teardown()

    def _start(self) -> Any:
        import wandb

        mode = self._mode if self._mode != "auto" else os.environ.get("WANDB_MODE") or _auto_mode()
        try:
            run = self._init(mode)
        except wandb.errors.CommError as error:
            if mode == "offline":
                raise
            log.warning("W&B can't be reached (%s)", str(error).splitlines()[0])
            mode = "offline"
            wandb.teardown()  # the service still holds the run's id
            run = self._init(mode)
        run.define_metric("kimg")
        run.define_metric("*", step_metric="kimg")
        if mode == "offline":
            log.info("W&B is offline; to sync: wandb sync %s", self._run_dir / "wandb" / "offline-run-*")
        elif run.url:
            log.info("W&B run: %s", run.url)
        return run

    def _init(self, mode: str) -> Any:
        import wandb

        id_file = self._run_dir / "wandb_id.txt"
        if not id_file.exists() or not re.fullmatch(r"\w{1,64}\s*", id_file.read_text()):
            id_file.write_text(secrets.token_hex(4) + "\n")
        return wandb.init(
            mode=mode,  # type: ignore[arg-type]
            dir=str(self._run_dir),
            id=id_file.read_text().strip(),
            resume="allow",
            settings=wandb.Settings(silent=True, console="off", init_timeout=self.INIT_SECONDS),
            **self._arguments,
        )


def _auto_mode() -> str:
    """Online if an API key is configured, else offline."""
    import wandb

    return "online" if wandb.login(prompt=False, verify=False) else "offline"


class Trackers:
    """Several trackers as one; none of them in the processes that don't write."""

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
        except OSError as error:  # a full disk costs a line or a picture, not the run
            log.warning("could not record: %s", error)
