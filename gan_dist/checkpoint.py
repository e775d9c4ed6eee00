"""Checkpoints: `checkpoints/<images seen>/` in the run directory, complete or not there. No pickle, ever.

A checkpoint holds safetensors (`G`, `D`, `G_ema`, `opt_G`, `opt_D`), `state.json` and the run's `config.yaml`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from gan_dist.errors import UserError
from gan_dist.state import State

_NETWORKS = ("G", "D", "G_ema")
_OPTIMIZERS = ("opt_G", "opt_D")


def save_checkpoint(run_dir: Path, state: State, facts: dict[str, Any], keep: int) -> Path:
    """Write a checkpoint under a temporary name, flush it to disk, rename it, and prune to the newest `keep` (0: all).

    Args:
        facts: what is needed to build the networks without the data, kept in `state.json`.
    """
    folder = run_dir / "checkpoints"
    final = folder / f"{state.nimg:012d}"
    temporary = folder / f".tmp-{state.nimg:012d}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name in _NETWORKS:
        save_file(_contiguous(getattr(state, name).state_dict()), temporary / f"{name}.safetensors")
    for name in _OPTIMIZERS:
        save_file(_contiguous(_flatten(getattr(state, name))), temporary / f"{name}.safetensors")
    content = {"nimg": state.nimg, "metrics": state.metrics, **facts}
    (temporary / "state.json").write_text(json.dumps(content, indent=1) + "\n")
    shutil.copyfile(run_dir / "config.yaml", temporary / "config.yaml")
    for path in [*temporary.iterdir(), temporary]:
        _flush(path)
    if final.exists():  # left by an earlier course of the run that was resumed from before
        shutil.rmtree(final)
    temporary.rename(final)
    _flush(folder)
    if keep:
        for old in list_checkpoints(run_dir)[:-keep]:
            shutil.rmtree(old)
    return final


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    folder = run_dir / "checkpoints"
    found = folder.iterdir() if folder.is_dir() else []
    return sorted(path for path in found if re.fullmatch(r"\d{12}", path.name))


def find_checkpoint(run_dir: Path, name: str = "latest") -> Path:
    """The checkpoint of this name, or the newest one.

    Raises:
        UserError: there is none, with the names of those that are there.
    """
    if not run_dir.is_dir():
        raise UserError(f"{run_dir}: no such run directory")
    found = list_checkpoints(run_dir)
    if name == "latest" and found:
        return found[-1]
    if name != "latest":
        for path in found:
            if path.name == name or path.resolve() == Path(name).resolve():
                return path
    there = ", ".join(path.name for path in found) or "none"
    raise UserError(f"{run_dir}: no checkpoint {name!r}; there: {there}")


def read_facts(checkpoint: Path) -> dict[str, Any]:
    """The content of a checkpoint's `state.json`."""
    try:
        content = json.loads((checkpoint / "state.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{checkpoint}: damaged checkpoint ({error}); name an older one") from error
    if not isinstance(content, dict) or not {"nimg", "image_shape", "num_classes"} <= content.keys():
        raise UserError(f"{checkpoint}: state.json is not one of a gan_dist checkpoint; name an older one")
    return content


def load_network(checkpoint: Path, name: str, module: nn.Module) -> None:
    """Read the weights of `G`, `D` or `G_ema` into a module."""
    try:
        module.load_state_dict(_read(checkpoint / f"{name}.safetensors"))
    except RuntimeError as error:
        raise UserError(
            f"{checkpoint}: {name} does not fit the config: {' '.join(str(error).split())[:200]}"
        ) from error


def restore(checkpoint: Path, state: State) -> None:
    """Put a run back to where it was: networks, moments of the optimizers, images seen, metrics."""
    for name in _NETWORKS:
        load_network(checkpoint, name, getattr(state, name))
    for name in _OPTIMIZERS:
        _unflatten(getattr(state, name), _read(checkpoint / f"{name}.safetensors"))
    facts = read_facts(checkpoint)
    state.nimg = int(facts["nimg"])
    state.metrics = dict(facts.get("metrics", {}))


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({error}); name an older checkpoint") from error


def _flatten(optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimizer's moments as `<number of the parameter>.<name>`. Its settings come from the config."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{k}": torch.as_tensor(v) for i, values in state.items() for k, v in values.items() if v is not None}


def _unflatten(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _flush(path: Path) -> None:
    """Make sure that a file, or the names in a directory, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
