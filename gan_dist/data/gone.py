"""Tell a data folder that is gone, because it was unmounted or renamed, from single files that cannot be read."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from gan_dist.errors import UserError


class DataGoneError(UserError):
    """The folder of a data set is not there any more. It may come back."""


def check_present(paths: Iterable[Path], error: Exception) -> None:
    """Raise an error if a file could not be read because the whole folder is gone.

    Args:
        paths: some files of the data set.
        error: the error of `gan_dist.data.images.read_image`.

    Raises:
        DataGoneError: the operating system could not open the file, and none of the others is there either.
    """
    cause = error.__cause__
    # A decoder's errors about a damaged image can be OSErrors too, but they have no number.
    if isinstance(cause, OSError) and cause.errno is not None and not any_present(paths):
        raise DataGoneError(f"the images are gone: {error}") from error


def any_present(paths: Iterable[Path]) -> bool:
    """Tell if any of these files is there."""
    # Unlike `Path.exists`, this function is also False if the file system does not answer as it should.
    return any(os.path.exists(path) for path in paths)  # noqa: PTH110
