"""Calls the callbacks that a user has registered, or has handed to `gan_dist.train`."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from gan_dist.checkpoint.state import State
from gan_dist.errors import CallbackError, ConfigError, UserError
from gan_dist.parts import Table
from gan_dist.report.tracking import Tracker

# The valid keys of `callbacks`: classes of users, whose keyword-only arguments are settings.
CALLBACKS = Table("callback", {})


class Context(NamedTuple):
    """What a callback is called with.

    Attributes:
        run_dir: the run directory.
        settings: all settings of the run, as nested mappings.
        nimg: number of real images that D has seen.
        metrics: the newest value of each metric of this run, by name. An evaluation that is due at the same moment
            comes later.
        G, D, G_ema: the networks, without wrappers.
        log: a logger, whose lines go where those of the run go.
        tracker: records figures and pictures by `scalars(nimg, {name: value})` and `image(nimg, name, picture)`; in
            processes other than the main one it records nothing.
        is_main: this is the main process. A callback is called in all processes.
    """

    run_dir: Path
    settings: dict[str, Any]
    nimg: int
    metrics: dict[str, float]
    G: nn.Module
    D: nn.Module
    G_ema: nn.Module
    log: logging.Logger
    tracker: Tracker
    is_main: bool


class UsersCallback:
    """A callback of a user, as the training loop calls it.

    The user's callback is an object that can be called with a `Context`. Its attribute `every_kimg` says after how many
    thousand images it is called. It may have the attributes `at_start` and `at_end`, which are False otherwise, and the
    methods `state_dict()` and `load_state_dict(state)`, with which its state is saved and restored.

    Args:
        name: its name in checkpoints.
        call: the user's callback.
        context: makes the context from the state of the run.
        facts: what checkpoints record; `callbacks` in it, the state of each callback by name, is kept up to date.

    Raises:
        ConfigError: the object has no `every_kimg`.
    """

    def __init__(self, name: str, call: Any, context: Callable[[State], Context], facts: dict[str, Any]) -> None:
        if isinstance(call, type):
            raise ConfigError(f"callback {name} is a class: give an object of it, {call.__name__}(…)")
        every_kimg = getattr(call, "every_kimg", None)
        if not callable(call) or not isinstance(every_kimg, int | float) or every_kimg < 0:
            raise ConfigError(f"callback {name}: it must be callable, and have every_kimg, a number that is at least 0")
        self.name, self.call, self.context, self.facts = name, call, context, facts
        self.every_nimg = round(1000 * every_kimg)
        self.at_start, self.at_end = (bool(getattr(call, key, False)) for key in ("at_start", "at_end"))
        self._take_over()

    def __call__(self, state: State) -> None:
        """Call the user's callback.

        Raises:
            CallbackError: it has raised an error.
        """
        try:
            self.call(self.context(state))
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise CallbackError(f"the callback {self.name} failed at {state.nimg / 1000:g} kimg ({what})") from error
        self._keep()

    def rewind(self, nimg: int) -> None:
        """The run has gone back to a checkpoint: the callback gets the state that it had there. `nimg` is not used."""
        self._take_over()

    def _take_over(self) -> None:
        """Give the callback the state in the facts, if there is one; without one, the facts get its own."""
        states = self.facts["callbacks"]
        if self.name in states and hasattr(self.call, "load_state_dict"):
            self.call.load_state_dict(copy.deepcopy(states[self.name]))
        self._keep()

    def _keep(self) -> None:
        """Take over the callback's state for the next checkpoint."""
        if not hasattr(self.call, "state_dict"):
            return
        state = self.call.state_dict()
        try:
            text = json.dumps(state, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise UserError(f"callback {self.name}: its state_dict() must be JSON, without tensors ({error})") from None
        # A new mapping, because a checkpoint may be written from the old one now.
        self.facts["callbacks"] = {**self.facts["callbacks"], self.name: json.loads(text)}
