"""Checkpoints: `checkpoints/<images seen>/` in the run directory, complete or not there. No pickle, ever.

A checkpoint holds safetensors (`G`, `D`, `G_ema`, `opt_G`, `opt_D`), `state.json`, the run's `config.yaml`, and
`manifest.json` with the size and SHA-256 of each of them. What is read is checked against it first.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from gan_dist.checkpoint import manifest
from gan_dist.checkpoint.moments import flatten, unflatten
from gan_dist.checkpoint.state import State
from gan_dist.errors import UserError

log = logging.getLogger(__name__)

NETWORKS = ("G", "D", "G_ema")
OPTIMIZERS = ("opt_G", "opt_D")
FILES = (*(f"{name}.safetensors" for name in (*NETWORKS, *OPTIMIZERS)), "state.json", "config.yaml")
MAX_HEADER = 2**24  # bytes of a safetensors file beside its numbers
MOMENTS = 4  # tensors that an optimizer keeps of a parameter, at most


# ---------------------------------------------------------------------------------------------------------------------
# Writing


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment, on the host: nothing in it changes while training goes on.

    Attributes:
        tensors: by file, then by name.
        facts: the content of `state.json`.
        arrived: waits until copies from the device have arrived.
    """

    tensors: dict[str, dict[str, Tensor]]
    facts: dict[str, Any]
    arrived: Callable[[], None]


def take_snapshot(state: State, facts: dict[str, Any]) -> Snapshot:
    """Copy a run off its device, on a GPU without waiting for it.

    Args:
        facts: what is needed to build the networks without the data.
    """
    tensors = {name: _to_host(getattr(state, name).state_dict()) for name in NETWORKS}
    tensors |= {name: _to_host(flatten(getattr(state, name))) for name in OPTIMIZERS}
    scalers = {name: scaler.state_dict() for name, scaler in state.scalers.items()}
    progress = {name: getattr(state, name) for name in ("nimg", "metrics", "metrics_nimg", "retries")}
    arrived: Callable[[], None] = lambda: None  # noqa: E731
    if torch.cuda.is_initialized():
        event = torch.cuda.Event()
        event.record()
        arrived = event.synchronize
    return Snapshot(tensors, {**progress, "scalers": scalers, **facts}, arrived)


def write_checkpoint(run_dir: Path, snapshot: Snapshot, config: str) -> Path:
    """Write under a temporary name, flush to disk, read back and compare, rename.

    Args:
        config: the run's resolved config, YAML.

    Raises:
        OSError: it could not be written whole; nothing of it is left.
        UserError: what was read back is not what was written; likewise.
    """
    snapshot.arrived()
    nimg = snapshot.facts["nimg"]
    folder = run_dir / "checkpoints"
    final, temporary, old = folder / f"{nimg:012d}", folder / f".tmp-{nimg:012d}", folder / f".old-{nimg:012d}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        written = {}
        for name in FILES:
            stem = name.removesuffix(".safetensors")
            if stem in snapshot.tensors:
                content = save(snapshot.tensors[stem])
            else:
                content = (config if name == "config.yaml" else json.dumps(snapshot.facts, indent=1) + "\n").encode()
            written[name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            _write(temporary / name, content)
        _write(temporary / "manifest.json", (json.dumps(written, indent=1) + "\n").encode())
        _flush(temporary)
        verify(temporary)
        if final.exists():  # from an earlier course of the run, which was resumed from before
            shutil.rmtree(old, ignore_errors=True)
            final.rename(old)
        temporary.rename(final)
        _flush(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        _put_back(old, final)
        raise
    shutil.rmtree(old, ignore_errors=True)
    return final


def clean_up(run_dir: Path) -> None:
    """Put right what a crash in the middle of writing has left."""
    folder = run_dir / "checkpoints"
    for old in folder.glob(".old-*"):
        _put_back(old, folder / old.name.removeprefix(".old-"))
    for path in (*folder.glob(".tmp-*"), *folder.glob(".old-*")):
        shutil.rmtree(path, ignore_errors=True)


def _put_back(old: Path, final: Path) -> None:
    """A checkpoint that made room for one that did not come."""
    if old.exists() and not final.exists():
        old.rename(final)


def set_aside(checkpoint: Path) -> None:
    """Rename what is newer than the checkpoint that a run goes on from: damaged, or of a course that it has left.

    There, `prune` does not count it among the newest, and no later start goes on from it.
    """
    for path in list_checkpoints(checkpoint.parent.parent):
        if path.name > checkpoint.name:
            aside = path.with_name(f"aside-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            log.warning("%s is newer than where the run goes on: now %s", path, aside.name)


def prune(run_dir: Path, keep: int, every_nimg: int, best: bool) -> None:
    """Remove all but the newest `keep` (0: all stay), the best if asked for, and one of every `every_nimg` images."""
    found = list_checkpoints(run_dir)
    if not keep:
        return
    kept = {*found[-keep:], *(best_checkpoint(found) if best else [])}
    if every_nimg:
        first_of: dict[int, Path] = {}
        for path in found:
            first_of.setdefault(int(path.name) // every_nimg, path)
        kept |= {path for number, path in first_of.items() if number}
    for path in found:
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flush(folder: Path) -> None:
    """Make sure that the names in a directory are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _to_host(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies in host memory; from a GPU they may still be under way."""
    copies = {}
    for name, tensor in tensors.items():
        source = tensor.detach().contiguous()
        pinned = source.device.type == "cuda"
        copies[name] = torch.empty_like(source, device="cpu", pin_memory=pinned).copy_(source, non_blocking=True)
    return copies


# ---------------------------------------------------------------------------------------------------------------------
# Finding


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


# ---------------------------------------------------------------------------------------------------------------------
# Reading: nothing is believed


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


def load_network(checkpoint: Path, name: str, module: nn.Module) -> None:
    """Read the weights of `G`, `D` or `G_ema` into a module; one on the meta device takes the file's memory."""
    tensors = _read_tensors(checkpoint, name, list(module.state_dict().values()))
    meta = any(p.is_meta for p in module.parameters())
    try:
        module.load_state_dict(tensors, assign=meta)
    except RuntimeError as error:
        raise UserError(
            f"{checkpoint}: {name} does not fit the config: {' '.join(str(error).split())[:200]}"
        ) from error


def restore(checkpoint: Path, state: State) -> None:
    """Put a run back to where it was: all that its next iteration depends on."""
    facts = read_facts(checkpoint)
    for name in NETWORKS:
        load_network(checkpoint, name, getattr(state, name))
    for name in OPTIMIZERS:
        optimizer = getattr(state, name)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        unflatten(optimizer, _read_tensors(checkpoint, name, MOMENTS * parameters), checkpoint / f"{name}.safetensors")
    for name, scaler in state.scalers.items():
        if name in facts["scalers"]:
            try:
                scaler.load_state_dict(facts["scalers"][name])
            except (TypeError, KeyError, RuntimeError) as error:
                raise UserError(f"{checkpoint}: damaged: the loss scale of {name} in state.json") from error
    state.nimg, state.retries = facts["nimg"], facts["retries"]
    state.metrics, state.metrics_nimg = facts["metrics"], facts["metrics_nimg"]


def _read_tensors(checkpoint: Path, name: str, like: Sequence[Tensor]) -> dict[str, Tensor]:
    """The tensors of a file, which is no larger than one of these would be in fp64."""
    most = MAX_HEADER + 8 * sum(tensor.numel() for tensor in like)
    try:
        return load(manifest.read_file(checkpoint, f"{name}.safetensors", most))
    except (SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"{checkpoint / name}.safetensors: damaged: {error}") from error
