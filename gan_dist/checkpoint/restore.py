"""Read the weights and optimizer moments of a checkpoint.

A checkpoint may come from a stranger, so the sizes, names and shapes in it are checked before they are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from gan_dist.checkpoint import manifest
from gan_dist.checkpoint.find import NETWORKS, OPTIMIZERS, read_facts
from gan_dist.checkpoint.formats import format_of, renamed
from gan_dist.checkpoint.moments import unflatten
from gan_dist.checkpoint.state import State
from gan_dist.errors import UserError

MAX_HEADER = 2**24  # largest size in bytes of a safetensors file's header
MOMENTS = 4  # an optimizer of torch keeps at most so many tensors for each parameter


def read_network(checkpoint: Path, name: str, like: nn.Module) -> dict[str, Tensor]:
    """Read the weights of a network, under the names of today's format.

    Args:
        checkpoint: the checkpoint's directory.
        name: "G", "D" or "G_ema".
        like: a network of about the same size, which limits the memory that a forged file can use.

    Raises:
        UserError: the file is missing or damaged.
    """
    number = format_of(manifest.read_json(checkpoint, "state.json"), checkpoint)
    return renamed(name, _read_tensors(checkpoint, name, list(like.state_dict().values())), number)


def load_network(checkpoint: Path, name: str, module: nn.Module) -> None:
    """Load the weights of a network from a checkpoint into a module.

    Args:
        checkpoint: the checkpoint's directory.
        name: "G", "D" or "G_ema".
        module: a network with the same architecture. If it is on the meta device, it gets new tensors on the CPU.

    Raises:
        UserError: the file is missing or damaged, or does not fit the module.
    """
    tensors = read_network(checkpoint, name, module)
    meta = any(p.is_meta for p in module.parameters())
    try:
        module.load_state_dict(tensors, assign=meta)
    except RuntimeError as error:
        raise UserError(
            f"{checkpoint}: {name} does not fit the config: {' '.join(str(error).split())[:200]}"
        ) from error


def restore(checkpoint: Path, state: State, protocol: dict[str, Any] | None = None) -> None:
    """Set the state of a run to that of a checkpoint: everything that the next iteration depends on.

    Args:
        checkpoint: the checkpoint's directory.
        state: the state to change. It must have the same networks and optimizers.
        protocol: how the run measures its metrics now. Metrics of another protocol are left out. None for any protocol.

    Raises:
        UserError: a file is missing or damaged, or does not fit the networks.
    """
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
    same = protocol is None or facts["protocol"] == protocol
    state.metrics, state.metrics_nimg = (facts["metrics"], facts["metrics_nimg"]) if same else ({}, -1)


def _read_tensors(checkpoint: Path, name: str, like: Sequence[Tensor]) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file.

    The file must not be larger than a file with the tensors of `like` in fp64. This limits the memory that a forged
    file can use.
    """
    most = MAX_HEADER + 8 * sum(tensor.numel() for tensor in like)
    try:
        return load(manifest.read_file(checkpoint, f"{name}.safetensors", most))
    except (SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"{checkpoint / name}.safetensors: damaged: {error}") from error
