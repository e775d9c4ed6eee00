"""Finding the checkpoints of a run, and reading what they say of themselves.

A checkpoint is a directory `checkpoints/<images seen>/` in the run directory. It holds safetensors (`G`, `D`, `G_ema`,
`opt_G`, `opt_D`), `state.json`, the run's `config.yaml`, and `manifest.json` with the size and SHA-256 of each of them.
There is no pickle in it. Every file that is read is compared with the manifest first.
"""

from __future__ import annotations

import logging
import math
import re
from pathlib import Path
from typing import Any

from gan_dist.checkpoint import manifest
from gan_dist.errors import UserError

log = logging.getLogger(__name__)

NETWORKS = ("G", "D", "G_ema")
OPTIMIZERS = ("opt_G", "opt_D")
FILES = (*(f"{name}.safetensors" for name in (*NETWORKS, *OPTIMIZERS)), "state.json", "config.yaml")


def list_checkpoints(run_dir: Path) -> list[Path]:
    """The checkpoints of a run, oldest first, broken ones too."""
    folder = run_dir / "checkpoints"
    found = folder.iterdir() if folder.is_dir() else []
    return sorted(path for path in found if re.fullmatch(r"\d{12}", path.name))


def find_checkpoint(run_dir: Path, name: str = "latest") -> Path:
    """The checkpoint of this name; `latest`: the newest that is whole; `best`: that with the best metric, likewise.

    Raises:
        UserError: there is none, with the names of those that are there.
    """
    if not run_dir.is_dir():
        raise UserError(f"{run_dir}: no such run directory")
    found = list_checkpoints(run_dir)
    wanted = {
        "latest": lambda: reversed(found),
        "best": lambda: best_checkpoint(found),
    }.get(name, lambda: (path for path in found if path.name == name or path.resolve() == Path(name).resolve()))
    for path in wanted():
        try:
            verify(path)
        except UserError as error:
            if name not in ("latest", "best"):
                raise
            log.warning("%s", error)
        else:
            return path
    there = ", ".join(path.name for path in found) or "none"
    raise UserError(f"{run_dir}: no checkpoint {name!r}; there: {there}")


def best_checkpoint(found: list[Path]) -> list[Path]:
    """The checkpoint with the lowest FID, alone in a list; [] if none was measured when it was written."""
    values = {}
    for path in found:
        try:
            facts = read_facts(path)
        except UserError:
            continue
        if facts["metrics_nimg"] == facts["nimg"] and (fid := fid_of(facts["metrics"])) < math.inf:
            values[path] = fid
    return [min(values, key=lambda path: values[path])] if values else []


def fid_of(metrics: dict[str, float]) -> float:
    """The FID among metrics, with whatever extractor; infinite if there is none."""
    return next((value for name, value in metrics.items() if name.startswith("fid")), math.inf)


def verify(checkpoint: Path) -> None:
    """Compare every file with the manifest.

    Raises:
        UserError: one is missing or not what was written.
    """
    for name in FILES:
        manifest.check_file(checkpoint, name)


_FACTS: dict[str, type] = {"nimg": int, "metrics": dict, "metrics_nimg": int, "retries": int, "scalers": dict,
                           "image_shape": list, "num_classes": int, "num_images": int,
                           "environment": dict}  # fmt: skip


def read_facts(checkpoint: Path) -> dict[str, Any]:
    """The content of a checkpoint's `state.json`."""
    facts = {"environment": {}, **manifest.read_json(checkpoint, "state.json")}
    wrong = [name for name, kind in _FACTS.items() if type(facts.get(name)) is not kind]
    shape = facts.get("image_shape")
    if not wrong and not (len(shape) == 3 and all(type(n) is int and 0 < n < 2**16 for n in shape)):  # type: ignore[arg-type,union-attr]
        wrong = ["image_shape"]
    if not wrong and not all(isinstance(value, int | float) for value in facts["metrics"].values()):
        wrong = ["metrics"]
    if not wrong and not all(isinstance(value, str) and value.isprintable() for value in facts["environment"].values()):
        wrong = ["environment"]
    if wrong:
        raise UserError(f"{checkpoint}: damaged: {wrong[0]} in state.json is not what a checkpoint has there")
    return facts


def config_path(checkpoint: Path) -> Path:
    """The checkpoint's `config.yaml`, which is as it was written."""
    manifest.read_file(checkpoint, "config.yaml")
    return checkpoint / "config.yaml"
