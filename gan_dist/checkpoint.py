"""Checkpoints: `checkpoints/<images seen>/` in the run directory, complete or not there. No pickle, ever.

A checkpoint holds safetensors (`G`, `D`, `G_ema`, `opt_G`, `opt_D`), `state.json`, the run's `config.yaml`, and
`manifest.json` with the size and SHA-256 of each of them. What is read is checked against it first.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.optim import Optimizer

from gan_dist.errors import UserError
from gan_dist.state import State

log = logging.getLogger(__name__)

NETWORKS = ("G", "D", "G_ema")
OPTIMIZERS = ("opt_G", "opt_D")
FILES = (*(f"{name}.safetensors" for name in (*NETWORKS, *OPTIMIZERS)), "state.json", "config.yaml")
MAX_JSON = 2**20  # bytes; ours have a thousand


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
    tensors |= {name: _to_host(_flatten(getattr(state, name))) for name in OPTIMIZERS}
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
        manifest = {}
        for name in FILES:
            stem = name.removesuffix(".safetensors")
            if stem in snapshot.tensors:
                content = save(snapshot.tensors[stem])
            else:
                content = (config if name == "config.yaml" else json.dumps(snapshot.facts, indent=1) + "\n").encode()
            manifest[name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            _write(temporary / name, content)
        _write(temporary / "manifest.json", (json.dumps(manifest, indent=1) + "\n").encode())
        _flush(temporary)
        verify(temporary)
        if final.exists():  # from an earlier course of the run, which was resumed from before
            shutil.rmtree(old, ignore_errors=True)
            final.rename(old)
        temporary.rename(final)
        _flush(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
    return final


def clean_up(run_dir: Path) -> None:
    """Remove what a crash in the middle of writing has left."""
    for pattern in (".tmp-*", ".old-*"):
        for path in (run_dir / "checkpoints").glob(pattern):
            shutil.rmtree(path, ignore_errors=True)


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
        fid = next((value for name, value in facts["metrics"].items() if name.startswith("fid")), None)
        if isinstance(fid, float) and facts["metrics_nimg"] == facts["nimg"]:
            values[path] = fid
    return [min(values, key=lambda path: values[path])] if values else []


# ---------------------------------------------------------------------------------------------------------------------
# Reading: nothing is believed


def verify(checkpoint: Path) -> None:
    """Compare every file with the manifest.

    Raises:
        UserError: one is missing or not what was written.
    """
    for name in FILES:
        _read(checkpoint, name)


def _read(checkpoint: Path, name: str) -> bytes:
    """A file's content, which is what the manifest says."""
    path, manifest = checkpoint / name, _read_json(checkpoint / "manifest.json")
    entry = manifest.get(name)
    if not isinstance(entry, dict) or not isinstance(entry.get("size"), int):
        raise UserError(f"{checkpoint}: damaged: manifest.json does not list {name}")
    content = _read_plain(path, entry["size"])
    if hashlib.sha256(content).hexdigest() != entry.get("sha256"):
        raise UserError(f"{path}: damaged: its content is not what was written")
    return content


def _read_plain(path: Path, size: int | None = None) -> bytes:
    """The content of a regular file, not one behind a link; of this size, or at most MAX_JSON."""
    try:
        if path.is_symlink() or not path.is_file():
            raise UserError(f"{path}: damaged: {'a link' if path.is_symlink() else 'no such file'}")
        found = path.stat().st_size
        if size is not None and found != size:
            raise UserError(f"{path}: damaged: {found} bytes, not {size}")
        if size is None and found > MAX_JSON:
            raise UserError(f"{path}: damaged: {found} bytes are more than {MAX_JSON}")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read_plain(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged: not JSON ({type(error).__name__})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: damaged: not what a checkpoint has there")
    return content


_FACTS: dict[str, type] = {"nimg": int, "metrics": dict, "metrics_nimg": int, "retries": int, "scalers": dict,
                           "image_shape": list, "num_classes": int, "num_images": int}  # fmt: skip


def read_facts(checkpoint: Path) -> dict[str, Any]:
    """The content of a checkpoint's `state.json`."""
    _read(checkpoint, "state.json")
    facts = _read_json(checkpoint / "state.json")
    wrong = [name for name, kind in _FACTS.items() if type(facts.get(name)) is not kind]
    shape = facts.get("image_shape")
    if not wrong and not (len(shape) == 3 and all(type(n) is int and 0 < n < 2**16 for n in shape)):  # type: ignore[arg-type,union-attr]
        wrong = ["image_shape"]
    if not wrong and not all(isinstance(value, int | float) for value in facts["metrics"].values()):
        wrong = ["metrics"]
    if wrong:
        raise UserError(f"{checkpoint}: damaged: {wrong[0]} in state.json is not what a checkpoint has there")
    return facts


def config_path(checkpoint: Path) -> Path:
    """The checkpoint's `config.yaml`, which is as it was written."""
    _read(checkpoint, "config.yaml")
    return checkpoint / "config.yaml"


def load_network(checkpoint: Path, name: str, module: nn.Module) -> None:
    """Read the weights of `G`, `D` or `G_ema` into a module; one on the meta device takes the file's memory."""
    tensors = _read_tensors(checkpoint, name)
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
        _unflatten(getattr(state, name), _read_tensors(checkpoint, name), checkpoint / f"{name}.safetensors")
    for name, scaler in state.scalers.items():
        if name in facts["scalers"]:
            try:
                scaler.load_state_dict(facts["scalers"][name])
            except (TypeError, KeyError, RuntimeError) as error:
                raise UserError(f"{checkpoint}: damaged: the loss scale of {name} in state.json") from error
    state.nimg, state.retries = facts["nimg"], facts["retries"]
    state.metrics, state.metrics_nimg = facts["metrics"], facts["metrics_nimg"]


def _read_tensors(checkpoint: Path, name: str) -> dict[str, Tensor]:
    try:
        return load(_read(checkpoint, f"{name}.safetensors"))
    except (SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"{checkpoint / name}.safetensors: damaged: {error}") from error


def _flatten(optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimizer's moments as `<number of the parameter>.<name>`. Its settings come from the config."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{k}": torch.as_tensor(v) for i, values in state.items() for k, v in values.items() if v is not None}


def _unflatten(optimizer: Optimizer, tensors: dict[str, Tensor], path: Path) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        if not index.isdecimal() or int(index) >= len(parameters):
            raise UserError(f"{path}: {key!r} does not fit the config")
        state.setdefault(int(index), {})[name] = tensor
    for number, moments in state.items():
        found = {name: tuple(tensor.shape) for name, tensor in moments.items()}
        expected = _moments_of(optimizer, parameters[number])
        if found != expected:
            raise UserError(f"{path}: {found} of parameter {number} do not fit the config, which makes {expected}")
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _moments_of(optimizer: Optimizer, parameter: Tensor) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what an optimizer keeps of a parameter, seen after a step with a copy of it."""
    twin = torch.zeros_like(parameter)
    twin.grad = torch.zeros_like(parameter)
    probe = copy(optimizer)
    probe.state, probe.param_groups = defaultdict(dict), [{**optimizer.param_groups[0], "params": [twin]}]
    type(optimizer).step(probe)
    return {name.partition(".")[2]: tuple(tensor.shape) for name, tensor in _flatten(probe).items()}
