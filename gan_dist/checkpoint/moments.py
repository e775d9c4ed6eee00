"""Convert the state of an optimizer, for example Adam's moments, to named tensors and back, for checkpoints."""

from __future__ import annotations

from collections import defaultdict
from copy import copy
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Optimizer

from gan_dist.errors import UserError


def flatten(optimizer: Optimizer) -> dict[str, Tensor]:
    """Return the tensors that an optimizer keeps for its parameters, with names `<number of the parameter>.<name>`.

    The optimizer's settings, such as its learning rate, are not included, because they come from the config.
    """
    state = optimizer.state_dict()["state"]
    return {f"{i}.{k}": torch.as_tensor(v) for i, values in state.items() for k, v in values.items() if v is not None}


def unflatten(optimizer: Optimizer, tensors: dict[str, Tensor], path: Path) -> None:
    """Load tensors that `flatten` has returned into an optimizer.

    Args:
        optimizer: an optimizer of the same kind, for the same network.
        tensors: what `flatten` has returned.
        path: the file that the tensors come from, for error messages.

    Raises:
        UserError: names or shapes are not the ones that this optimizer would keep.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        if not index.isdecimal() or int(index) >= len(parameters):
            raise UserError(f"{path}: {key!r} does not fit the config")
        state.setdefault(int(index), {})[name] = tensor
    for number, moments in state.items():
        parameter = parameters[number]
        found = {name: tuple(tensor.shape) for name, tensor in moments.items()}
        expected = moments_of(optimizer, parameter)
        if found != expected:
            raise UserError(f"{path}: {found} of parameter {number} do not fit the config, which makes {expected}")
        for name, moment in moments.items():
            # Fused kernels need moments with the memory layout of their parameter.
            if moment.shape == parameter.shape and moment.ndim:
                moments[name] = torch.empty_like(parameter).copy_(moment)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def moments_of(optimizer: Optimizer, parameter: Tensor) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the tensors that an optimizer keeps for a parameter.

    To find them, a copy of the optimizer makes a step with a parameter of the same shape, filled with zeros.
    """
    twin = torch.zeros_like(parameter)
    twin.grad = torch.zeros_like(parameter)
    probe = copy(optimizer)
    probe.state, probe.param_groups = defaultdict(dict), [{**optimizer.param_groups[0], "params": [twin]}]
    type(optimizer).step(probe)
    return {name.partition(".")[2]: tuple(tensor.shape) for name, tensor in flatten(probe).items()}
