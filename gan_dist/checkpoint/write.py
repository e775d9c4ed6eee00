"""Writing checkpoints, each of which is complete or not there, and removing those that are no longer wanted."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from gan_dist.checkpoint.find import FILES, NETWORKS, OPTIMIZERS, best_checkpoint, list_checkpoints, verify
from gan_dist.checkpoint.moments import flatten
from gan_dist.checkpoint.state import State

log = logging.getLogger(__name__)


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
