"""Figures and pictures of a run in Weights & Biases."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import re
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gan_dist.files import read_file, replacing
from gan_dist.place import Place
from gan_dist.report.tracking import Outcome

log = logging.getLogger(__name__)

MOST_ID = 2**13  # largest size of `wandb_id.txt` in bytes; a path has at most 2^12


class WandbTracker:
    """Sends metrics and pictures to W&B. A resumed run continues its W&B run, whose id is in the run directory.

    Only a thread of this object calls the W&B library, so a slow or unreachable service does not delay training. After
    the first error in the library the object logs a warning and sends nothing more; training goes on.

    Args:
        run_dir: the run directory.
        mode: "auto", "online", "offline" or "disabled"; see `gan_dist.settings.schema.Tracking.wandb`.
        project, entity: W&B project, and W&B team or user; if `entity` is empty, the user's default is taken.
        name: name of the W&B run.
        config: the settings of the run.
    """

    INIT_SECONDS = 20.0  # how long to try to reach W&B before the run is recorded offline
    FINISH_SECONDS = 60.0  # how long a finished run waits at its end until W&B has got everything
    FAILED_SECONDS = 5.0  # how long a stopped or failed run waits for it

    def __init__(self, run_dir: Path, mode: str, project: str, entity: str, name: str, config: dict[str, Any]) -> None:
        self._queue: queue.Queue[Callable[[Any], None] | None] = queue.Queue(maxsize=10_000)
        self._arguments: dict[str, Any] = {"project": project, "entity": entity or None, "name": name, "config": config}
        self._run_dir, self._place = run_dir, Place(run_dir)
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
            log.warning("W&B did not finish within %.0f s; all results are also in %s", seconds, self._run_dir)

    def _put(self, item: Callable[[Any], None] | None) -> None:
        """Queue a function of the W&B run for the thread; None ends the thread."""
        if self._thread.is_alive():
            try:
                self._queue.put_nowait(item)
            except queue.Full:
                log.warning("W&B is too slow, so one value was not sent to it")

    def _work(self) -> None:
        """The thread: start the W&B run, then call the queued functions one after the other."""
        try:
            run = self._start()
            # The library writes pictures by path, and must not make a moved run directory anew.
            while (item := self._queue.get()) is not None and not self._place.moved():
                item(run)
            run.finish(exit_code=self._exit_code)
        except Exception as error:  # an error of W&B must not stop the training
            log.warning("W&B tracking ended (%s: %s); training goes on", type(error).__name__, error)
            with contextlib.suppress(Exception):  # without this call W&B's exit hook would print a traceback
                import wandb

                wandb.teardown()

    def _start(self) -> Any:
        """Start the W&B run, offline if the service cannot be reached."""
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
        """Call `wandb.init` with the id of the run directory."""
        import wandb

        return wandb.init(
            mode=mode,  # type: ignore[arg-type]
            dir=str(self._run_dir),
            id=_id_of(self._run_dir),
            resume="allow",
            settings=wandb.Settings(silent=True, console="off", init_timeout=self.INIT_SECONDS),
            **self._arguments,
        )


def _id_of(run_dir: Path) -> str:
    """Return the id of the W&B run that belongs to a run directory, or make a new one.

    `wandb_id.txt` holds the id, and below it which directory the id belongs to: its inode number and its path. One of
    them must still be right. The inode number stays when the directory is moved, and it is the same on all hosts, even
    if they have mounted the file system in different places. The path stays when the directory is restored from a
    backup, and on file systems that give other inode numbers after each mount. A copy has another path and another
    inode number. It gets an id of its own, because otherwise two runs would write into one W&B run.
    """
    file, here = run_dir / "wandb_id.txt", {"inode": run_dir.stat().st_ino, "path": str(run_dir.resolve())}
    try:
        text = read_file(file, MOST_ID).decode(errors="replace")
    except OSError:
        text = ""
    run_id, _, owner = text.strip().partition("\n")
    if not re.fullmatch(r"\w{1,64}", run_id):
        run_id, there = secrets.token_hex(4), here
    else:
        try:
            there = json.loads(owner) if owner else here  # an earlier version wrote the id alone
        except (ValueError, RecursionError):
            there = here
    if not isinstance(there, dict) or not any(there.get(name) == value for name, value in here.items()):
        log.warning("%s is a copy of another run directory: it gets a W&B run of its own", run_dir)
        run_id = secrets.token_hex(4)
    with replacing(file) as new:
        new.write(f"{run_id}\n{json.dumps(here)}\n".encode())
    return run_id


def _auto_mode() -> str:
    """Return "online" if an API key for W&B is configured, else "offline"."""
    import wandb

    return "online" if wandb.login(prompt=False, verify=False) else "offline"
