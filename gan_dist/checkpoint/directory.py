"""The directory of a run: whether it holds a run already, making it, and removing what a failed start has made."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from gan_dist.checkpoint.find import list_checkpoints
from gan_dist.checkpoint.lock import refuse_links
from gan_dist.errors import ConfigError, Unreadable, UserError

EVALUATIONS = "evaluations.jsonl"  # a result of `gan-dist evaluate` per line

# The names that a run and the commands for it write into its directory.
WRITTEN = ("config.yaml", "checkpoints", "metrics.jsonl", "log.txt", "samples", "plot.png", "wandb", "wandb_id.txt",
           "starts.jsonl", "unreadable.txt", EVALUATIONS, "generated", "trace.json")  # fmt: skip
_FOLDERS = ("checkpoints", "samples", "wandb", "generated")
_OF_THE_LOCK = (".lock", ".owner")


def has_checkpoints(run_dir: Path) -> bool:
    """Tell if a directory holds checkpoints, damaged ones too, or one that a crash has left under its name `.old-…`.

    Raises:
        Unreadable: the directory could not be read.
    """
    return bool(list_checkpoints(run_dir)) or any((run_dir / "checkpoints").glob(".old-*"))


def refuse_strangers_files(run_dir: Path) -> None:
    """Refuse a directory for a new run if it holds files of names that the run would write. Nothing is changed.

    An empty directory that the run would fill does no harm. Neither does the `log.txt` of a start that was killed
    before it began, which has left the lock's file beside it: it only grows.

    Raises:
        ConfigError: there is such a file; the message names it.
        UserError: there is a link in the directory.
        Unreadable: the directory could not be read.
    """
    try:
        refuse_links(run_dir)
        names = _names(run_dir) if run_dir.is_dir() else set()
        for name in WRITTEN:
            path = run_dir / name
            empty = name in _FOLDERS and path.is_dir() and not _names(path)
            harmless = empty or (name == "log.txt" and ".owner" in names)
            if name not in names or harmless:
                continue
            raise ConfigError(
                f"run.dir={run_dir} holds {name} but no run that could go on, and a new run would overwrite it: move "
                "it, or name another directory"
            )
    except OSError as error:
        raise Unreadable(f"run.dir={run_dir}: cannot be read ({error.strerror})") from None


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


class MadeDirectory:
    """A run directory, made if it is not there, which can be left as it was.

    Args:
        run_dir: the directory.
        exist_ok: it may be there already.

    Raises:
        FileExistsError: it is there already, and must not be.
        UserError: it cannot be made.
    """

    def __init__(self, run_dir: Path, exist_ok: bool) -> None:
        self.path = run_dir
        self._absent = [path for path in (run_dir, *run_dir.parents) if not path.exists()]  # innermost first
        try:
            run_dir.mkdir(parents=True, exist_ok=exist_ok)
            self._before = _names(run_dir)
        except OSError as error:
            self.remove_empty()
            if isinstance(error, FileExistsError) and not exist_ok:
                raise
            raise UserError(f"run.dir={run_dir}: cannot make this directory ({error.strerror})") from None

    def remove_files(self) -> None:
        """Remove the files that a start has written. What was there before, and what others have written, stays."""
        for name in {*WRITTEN, *_OF_THE_LOCK} - self._before:
            path = self.path / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(OSError):
                    path.unlink()

    def remove_empty(self) -> None:
        """Remove the directories that a start has made, if they are empty."""
        with suppress(OSError):
            for path in self._absent:
                path.rmdir()
