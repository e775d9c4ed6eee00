"""The format of a checkpoint, and how checkpoints of earlier formats are read.

`state.json` says its format. A checkpoint of an earlier format is migrated in memory, from each format to the next one;
its files stay as they are. To change the format, raise FORMAT, append a migration to MIGRATIONS, and commit a run of
the format before to `tests/old_runs/`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from gan_dist.errors import UserError, too_new

if TYPE_CHECKING:  # wrong settings are refused before torch is imported, which takes seconds
    from torch import Tensor

FORMAT = 4
Facts: TypeAlias = dict[str, Any]  # the content of a `state.json`
Tensors: TypeAlias = "dict[str, Tensor]"


class Migration(NamedTuple):
    """How a checkpoint of one format becomes one of the next format.

    Attributes:
        facts: a function from the content of `state.json` to that of the next format.
        tensors: a function of the name of a network, "G", "D" or "G_ema", and of its tensors by name, which returns the
            tensors by the names of the next format.
    """

    facts: Callable[[Facts], Facts]
    tensors: Callable[[str, Tensors], Tensors] = lambda _, tensors: tensors


def _say_more(facts: Facts) -> Facts:
    """From 1 to 2: classes have names, unreadable images are listed, figures have a protocol, and paths are kept."""
    not_recorded: Facts = {"environment": {}, "class_names": [], "unreadable": [], "protocol": {}, "series": 1}
    return {**not_recorded, "paths": {}, "unmeasured": False, **facts}


def _name_generator(facts: Facts) -> Facts:
    """From 2 to 3: another generator draws, losses can be compiled, and runs can start from others."""
    environment, before = facts.get("environment"), {"random generator": "Philox", "compiled": "false"}
    facts = {"started_from": {}, **facts}
    return {**facts, "environment": {**before, **environment}} if isinstance(environment, dict) else facts


def _have_callbacks(facts: Facts) -> Facts:
    """From 3 to 4: callbacks of users have a state."""
    return {"callbacks": {}, **facts}


MIGRATIONS = [Migration(_say_more), Migration(_name_generator), Migration(_have_callbacks)]


def format_of(facts: Facts, path: Path) -> int:
    """Return the format of a checkpoint.

    Args:
        facts: the content of its `state.json`, as read.
        path: the checkpoint, for messages.

    Raises:
        UserError: the format is none.
        Unreadable: the format is newer than FORMAT.
    """
    # Formats 1 and 2 have no number. Only the second one names the classes.
    number = facts.get("format", 2 if "class_names" in facts else 1)
    if type(number) is not int or number < 1:
        raise UserError(f"{path}: damaged: format in state.json is missing or not valid")
    if number > FORMAT:
        raise too_new(path, number, FORMAT)
    return number


def migrated(facts: Facts, path: Path) -> Facts:
    """Return the content of a `state.json` in today's format.

    Raises:
        UserError: see `format_of`.
    """
    for migration in MIGRATIONS[format_of(facts, path) - 1 :]:
        facts = migration.facts(facts)
    return facts


def renamed(network: str, tensors: Tensors, number: int) -> Tensors:
    """Return the tensors of a network under the names of today's format.

    Args:
        network: "G", "D" or "G_ema".
        tensors: the tensors by name.
        number: the format of the checkpoint.
    """
    for migration in MIGRATIONS[number - 1 :]:
        tensors = migration.tensors(network, tensors)
    return tensors
