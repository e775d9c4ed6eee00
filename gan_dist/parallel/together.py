"""Do the work of a command in all processes together, and say in all of them why it failed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from gan_dist.advice import advise
from gan_dist.parallel.distributed import Distributed

T = TypeVar("T")


def together(dist: Distributed, work: Callable[[], T]) -> T:
    """Call `work` in all processes, wait for all of them, and return its result.

    Raises:
        Exception: `work` has raised it. If another process failed first, the error says what happened there.
    """
    try:
        result = work()
        dist.end()
    except Exception as error:
        raise dist.failure(advise(error)) from error
    return result
