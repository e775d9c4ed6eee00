"""Hide warnings of libraries about what this package does on purpose."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


def hide_warnings() -> None:
    """Hide the warnings, in this process, from now on."""
    # Accelerate wraps networks so that buffers are not broadcast.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
    # 1x1 convolutions cause this warning; for them, other strides cost no time.
    warnings.filterwarnings("ignore", message="Grad strides do not match")
    # torch warns of a capturable optimizer whose steps are not captured, as our first steps are not.
    warnings.filterwarnings("ignore", message="This instance was constructed with capturable=True")
    warnings.filterwarnings("ignore", module=r"PIL\.")  # what is wrong with a file is reported once, by its name


@contextmanager
def quiet() -> Iterator[None]:
    """A context in which the warnings are hidden. After it, the filters are those from before."""
    with warnings.catch_warnings():
        hide_warnings()
        yield
