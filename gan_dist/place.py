"""A directory that must stay where it is while a program writes into it."""

from __future__ import annotations

from pathlib import Path

from gan_dist.errors import UserError


class Place:
    """Remembers which directory a path names, and notices if the path later names another directory or none.

    A run writes by path. If somebody moves its directory, it must not go on half in the old and half in the new place.

    Args:
        path: the directory.

    Raises:
        OSError: there is no such directory.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._inode = path, path.stat().st_ino

    def moved(self) -> bool:
        """Tell if the path no longer names the directory. Ask this before each write."""
        try:
            return self._path.stat().st_ino != self._inode
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:  # a file system that does not answer; the write itself will report it
            return False

    def check(self) -> None:
        """Raise UserError if the path no longer names the directory."""
        if self.moved():
            raise UserError(
                f"run.dir={self._path} was moved or replaced while the run was writing, so nothing more is written; "
                "go on from the last checkpoint with run.dir=<the new place> resume=latest"
            )
