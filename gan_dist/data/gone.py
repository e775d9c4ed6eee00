"""Tell a data folder that is gone, because it was unmounted or renamed, from single files that cannot be read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from gan_dist.errors import UserError

PROBES = 16  # the folder is gone if none of so many files, evenly spaced in the data set, is there


class DataGoneError(UserError):
    """The folder of a data set is not there any more. It may come back."""


def check_present(files: Sequence[tuple[Path, int]], error: Exception) -> None:
    """Raise an error if a file could not be read because the whole folder is gone.

    Args:
        files: path and label of each file of the data set.
        error: the error of `gan_dist.data.images.read_image`.

    Raises:
        DataGoneError: the operating system could not open the file, and none of the others is there either.
    """
    cause = error.__cause__
    # A decoder's errors about a damaged image can be OSErrors too, but they have no number.
    if isinstance(cause, OSError) and cause.errno is not None and not any_present(files):
        raise DataGoneError(f"the images are gone: {error}") from error


def any_present(files: Sequence[tuple[Path, int]]) -> bool:
    """Tell if any of PROBES files of a data set is there."""
    # Unlike `Path.exists`, this function is also False if the file system does not answer as it should.
    return any(os.path.exists(path) for path, _ in files[:: max(1, len(files) // PROBES)])  # noqa: PTH110
