"""Find the checkpoints of a run, and read their `state.json`.

A checkpoint is a directory `checkpoints/<images seen>/` in the run directory. It holds the safetensors files of `G`,
`D`, `G_ema`, `opt_G` and `opt_D`, `state.json`, the run's `config.yaml`, and `manifest.json` with the size and SHA-256
of each other file. It contains no pickle. Every file is compared with the manifest before its content is used.
"""

from __future__ import annotations

import json
import logging
import math
import re
from pathlib import Path
from typing import Any

from gan_dist.checkpoint import manifest
from gan_dist.checkpoint.formats import migrated
from gan_dist.errors import Unreadable, UserError

log = logging.getLogger(__name__)

NETWORKS = ("G", "D", "G_ema")
OPTIMIZERS = ("opt_G", "opt_D")
FILES = (*(f"{name}.safetensors" for name in (*NETWORKS, *OPTIMIZERS)), "state.json", "config.yaml")
MAX_NIMG = 10**15  # largest number of images that a run can see: the largest `train.kimg`, in images


def nimg_of(checkpoint: Path) -> int:
    """Return the number of images seen, from the name of a checkpoint that `list_checkpoints` has found."""
    return int(checkpoint.name)


@manifest.patient
def list_checkpoints(run_dir: Path) -> list[Path]:
    """Return the directories of all checkpoints of a run, damaged ones too, sorted by images seen.

    Their names are the images seen, with at least 12 digits and with more from 10^12 images on.

    Raises:
        Unreadable: the directory could not be listed, several times.
    """
    folder = run_dir / "checkpoints"
    try:
        names = [path.name for path in folder.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise Unreadable(f"{folder}: cannot be listed ({error.strerror})") from error
    numbers = [name for name in names if re.fullmatch("[0-9]{12,16}", name) and name == f"{int(name):012d}"]
    return [folder / name for name in sorted(numbers, key=int)]


def find_checkpoint(run_dir: Path, name: str = "latest") -> Path:
    """Find a checkpoint of a run, and check that its files are not damaged.

    Args:
        run_dir: the run directory.
        name: "latest" for the newest undamaged checkpoint, "best" for the one with the lowest FID (of the newest FID's
            protocol), or the name or path of a checkpoint.

    Raises:
        UserError: there is no such run, no such checkpoint (the message lists those that exist), or the checkpoint of
            that name is damaged.
        Unreadable: a checkpoint could not be read. An older one is not taken in its place.
    """
    if not run_dir.is_dir():
        raise UserError(f"{run_dir}: no such run directory")
    found = list_checkpoints(run_dir)
    wanted = {
        "latest": lambda: reversed(found),
        "best": lambda: best_checkpoints(found)[-1:],
    }.get(name, lambda: (path for path in found if path.name == name or path.resolve() == Path(name).resolve()))
    deleted = False
    for path in wanted():
        try:
            verify(path)
        except Unreadable:
            raise
        except UserError as error:
            if not path.exists():  # a run that trains meanwhile has deleted it: it is not damaged
                deleted = True
            elif name not in ("latest", "best"):
                raise
            else:
                log.warning("%s", error)
        else:
            return path
    if deleted:
        return find_checkpoint(run_dir, name)
    there = ", ".join(path.name for path in found) or "none"
    raise UserError(f"{run_dir}: no checkpoint {name!r}; there: {there}")


def best_checkpoints(found: list[Path]) -> list[Path]:
    """Return the checkpoint with the lowest FID of each protocol, that of the newest FID last.

    FIDs of different protocols cannot be compared. The list is empty if no checkpoint has an FID of its own weights.

    Args:
        found: the checkpoints to choose from, sorted by images seen.

    Raises:
        Unreadable: a checkpoint could not be read.
    """
    best: dict[str, tuple[float, Path]] = {}
    for path in found:
        try:
            facts = read_facts(path)
        except Unreadable:
            raise
        except UserError:
            continue
        if facts["metrics_nimg"] == facts["nimg"] and (fid := fid_of(facts["metrics"])) < math.inf:
            protocol = json.dumps(facts["protocol"], sort_keys=True)
            best[protocol] = min(best.pop(protocol, (fid, path)), (fid, path))
    return [path for _, path in best.values()]


def fid_of(metrics: dict[str, float]) -> float:
    """Return the FID among metrics, whatever its feature extractor; infinity if there is none."""
    return next((value for name, value in metrics.items() if name.startswith("fid")), math.inf)


def verify(checkpoint: Path) -> None:
    """Compare every file of a checkpoint with the manifest.

    Raises:
        UserError: a file is missing or damaged.
    """
    for name in FILES:
        manifest.check_file(checkpoint, name)


_FACTS: dict[str, type] = {"nimg": int, "metrics": dict, "metrics_nimg": int, "retries": int, "scalers": dict,
                           "image_shape": list, "num_classes": int, "num_images": int,
                           "environment": dict, "class_names": list, "unreadable": list, "protocol": dict,
                           "series": int, "paths": dict, "unmeasured": bool, "started_from": dict,
                           "callbacks": dict}  # fmt: skip


def read_facts(checkpoint: Path) -> dict[str, Any]:
    """Read a checkpoint's `state.json`, and check the types of its values.

    Returns:
        `nimg`, `metrics`, `metrics_nimg` and `retries` as in `gan_dist.checkpoint.state.State`; `scalers`, the state of
        each loss scale; `image_shape`, `num_classes`, `class_names`, `num_images`, `data_key`, `unreadable` (the
        numbers of the images that could not be read) and `environment` of the run; `protocol` and `series` of the
        metrics; `paths`, absolute paths by the names of settings; `unmeasured`: an evaluation was broken off;
        `started_from`: the checkpoint of another run whose weights the run has taken, {} for none; and `callbacks`: the
        state of users' callbacks by name. What a run of an earlier version has not recorded is empty.

    Raises:
        UserError: the file is missing or damaged, or a newer version of gan_dist has written it.
    """
    facts = migrated(manifest.read_json(checkpoint, "state.json"), checkpoint)
    wrong = [name for name, kind in _FACTS.items() if type(facts.get(name)) is not kind]
    shape = facts.get("image_shape")
    if not wrong and not (len(shape) == 3 and all(type(n) is int and 0 < n < 2**16 for n in shape)):  # type: ignore[arg-type,union-attr]
        wrong = ["image_shape"]
    if not wrong and not 0 <= facts["nimg"] <= MAX_NIMG:
        wrong = ["nimg"]
    if not wrong and not all(isinstance(value, int | float) for value in facts["metrics"].values()):
        wrong = ["metrics"]
    if not wrong and not all(isinstance(value, str) and value.isprintable() for value in facts["environment"].values()):
        wrong = ["environment"]
    if not wrong and not all(isinstance(name, str) for name in facts["class_names"]):
        wrong = ["class_names"]
    if not wrong and not all(type(number) is int for number in facts["unreadable"]):
        wrong = ["unreadable"]
    if not wrong and not all(isinstance(value, str) for value in facts["paths"].values()):
        wrong = ["paths"]
    if wrong:
        raise UserError(f"{checkpoint}: damaged: {wrong[0]} in state.json is missing or not valid")
    return facts


def config_path(checkpoint: Path) -> Path:
    """Return the path of the checkpoint's `config.yaml`, after a check that the file is undamaged.

    Raises:
        UserError: the file is missing or damaged.
    """
    manifest.read_file(checkpoint, "config.yaml")
    return checkpoint / "config.yaml"
