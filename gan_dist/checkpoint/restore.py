"""Reading a checkpoint's weights and moments. The files may be a stranger's: nothing in them is believed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from gan_dist.checkpoint import manifest
from gan_dist.checkpoint.find import NETWORKS, OPTIMIZERS, read_facts
from gan_dist.checkpoint.moments import unflatten
from gan_dist.checkpoint.state import State
from gan_dist.errors import UserError

MAX_HEADER = 2**24  # bytes of a safetensors file beside its numbers
MOMENTS = 4  # tensors that an optimizer keeps of a parameter, at most


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
