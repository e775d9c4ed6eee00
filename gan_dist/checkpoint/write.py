"""Write checkpoints so that a crash leaves no incomplete one, and delete old ones.

The head of `gan_dist.checkpoint.find` says which files a checkpoint consists of.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from gan_dist.checkpoint.find import FILES, NETWORKS, OPTIMIZERS, best_checkpoints, list_checkpoints, nimg_of, verify
from gan_dist.checkpoint.formats import FORMAT
from gan_dist.checkpoint.moments import flatten
from gan_dist.checkpoint.state import State
from gan_dist.errors import Unreadable
from gan_dist.files import flush_file, flush_folder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """A copy of a run's state at one moment, in host memory. Training does not change it.

    Attributes:
        tensors: the tensors of each safetensors file: name of the file without its ending -> name -> tensor.
        facts: the content of `state.json`.
        arrived: a function that waits until the copies from the device are complete.
    """

    tensors: dict[str, dict[str, Tensor]]
    facts: dict[str, Any]
    arrived: Callable[[], None]


def take_snapshot(state: State, facts: dict[str, Any]) -> Snapshot:
    """Copy the state of a run to host memory. The host does not wait for a copy from a GPU; see `Snapshot.arrived`.

    Args:
        state: the state of the run.
        facts: further content of `state.json`, which `gan_dist.checkpoint.find.read_facts` lists. With it the networks
            can be built without the data.
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
    return Snapshot(tensors, {"format": FORMAT, **progress, "scalers": scalers, **facts}, arrived)


def write_checkpoint(run_dir: Path, snapshot: Snapshot, config: str) -> Path:
    """Write a checkpoint, flush it to disk, read it back to compare, and only then give it its final name.

    After an error no part of the checkpoint is left, and an older checkpoint of the same name is kept.

    Args:
        run_dir: the run directory, which exists.
        snapshot: the state to write.
        config: the run's resolved config as YAML.

    Returns:
        The checkpoint's directory.

    Raises:
        OSError: the checkpoint could not be written.
        UserError: the files that were read back differ from what was written.
    """
    snapshot.arrived()
    nimg = snapshot.facts["nimg"]
    folder = run_dir / "checkpoints"
    final, temporary, old = folder / f"{nimg:012d}", folder / f".tmp-{nimg:012d}", folder / f".old-{nimg:012d}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        folder.mkdir(exist_ok=True)  # never the run directory itself: it is missing if somebody has moved it
        temporary.mkdir()
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
        flush_folder(temporary)
        verify(temporary)
        if final.exists():  # the run was resumed from an earlier checkpoint and has now come to this one again
            shutil.rmtree(old, ignore_errors=True)
            final.rename(old)
        temporary.rename(final)
        flush_folder(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        _put_back(old, final)
        raise
    shutil.rmtree(old, ignore_errors=True)
    return final


def clean_up(run_dir: Path) -> None:
    """Delete what a crash during writing has left, and put back a checkpoint that was about to be replaced."""
    folder = run_dir / "checkpoints"
    for old in folder.glob(".old-*"):
        _put_back(old, folder / old.name.removeprefix(".old-"))
    for path in (*folder.glob(".tmp-*"), *folder.glob(".old-*")):
        shutil.rmtree(path, ignore_errors=True)


def _put_back(old: Path, final: Path) -> None:
    """Give a checkpoint its name back if the one that should replace it was not written."""
    if old.exists() and not final.exists():
        old.rename(final)


def set_aside(checkpoint: Path) -> None:
    """Rename the checkpoints that are newer than the one from which a run is resumed.

    They are damaged, or the run has gone back to before them. Under their new names `prune` does not count them, and no
    later start resumes from them.

    Args:
        checkpoint: the checkpoint from which the run is resumed.
    """
    for path in list_checkpoints(checkpoint.parent.parent):
        if nimg_of(path) > nimg_of(checkpoint):
            aside = path.with_name(f"aside-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            log.warning("%s is newer than the checkpoint that the run goes on from; renamed it to %s", path, aside.name)


def prune(run_dir: Path, keep: int, every_nimg: int, best: bool) -> None:
    """Delete the checkpoints that are not to be kept.

    If a checkpoint cannot be read at the moment, it may be the best one, so nothing is deleted this time.

    Args:
        run_dir: the run directory.
        keep: number of newest checkpoints to keep; 0 to keep all.
        every_nimg: also keep the first checkpoint of every so many images; 0 for none.
        best: also keep the checkpoint with the lowest FID of each protocol.
    """
    found = list_checkpoints(run_dir)
    if not keep:
        return
    try:
        kept = {*found[-keep:], *(best_checkpoints(found) if best else [])}
    except Unreadable as error:
        log.warning("%s: no old checkpoint is deleted this time", error)
        return
    if every_nimg:
        first_of: dict[int, Path] = {}
        for path in found:
            first_of.setdefault(nimg_of(path) // every_nimg, path)
        kept |= {path for number, path in first_of.items() if number}
    for path in found:
        if path not in kept:
            # Renamed first, so that a program that reads the checkpoint now finds it gone, and not damaged.
            shutil.rmtree(path.rename(path.with_name(f".tmp-{path.name}")), ignore_errors=True)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        flush_file(file)


def _to_host(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors to host memory. Copies from a GPU may still be incomplete when this function returns."""
    copies = {}
    for name, tensor in tensors.items():
        source = tensor.detach().contiguous()
        pinned = source.device.type == "cuda"
        copies[name] = torch.empty_like(source, device="cpu", pin_memory=pinned).copy_(source, non_blocking=True)
    return copies
