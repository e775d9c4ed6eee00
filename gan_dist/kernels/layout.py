"""Prepare a finished network for its device and precision: choose the memory layout of its weights, and its kernels.

The network still computes the same function. The names and shapes of its weights do not change, so checkpoints are the
same on every device.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gan_dist.kernels import cpu

NARROW = 16  # if groups have at most so many channels, cuDNN computes a grouped convolution in TF32 group by group


def adapt(module: nn.Module, precision: str) -> nn.Module:
    """Prepare a network for the device that it is on and for a precision; returns the same module.

    Args:
        module: the network, already on its device.
        precision: "fp64", "fp32", "tf32", "bf16" or "fp16".
    """
    device = next(module.parameters()).device
    if use_channels_last(module, device, precision):
        module.to(memory_format=torch.channels_last)
    if device.type == "cuda" and precision == "tf32":
        join_groups(module)
    if device.type == "cpu" and precision in ("fp32", "tf32"):
        cpu.convert(module)
    return module


def use_channels_last(module: nn.Module, device: torch.device, precision: str) -> bool:
    """Tell if a network with convolutions is faster in channels_last, where the channels of a pixel lie side by side.

    By measurement this holds for every network on a CPU, and on an H200 for R3GAN, which has grouped convolutions, in
    bf16 and tf32. No other network was measured on a GPU, so the others keep torch's default layout.
    """
    if precision == "fp64" or not any(parameter.ndim == 4 for parameter in module.parameters()):
        return False
    grouped = any(isinstance(child, nn.Conv2d) and child.groups > 1 for child in module.modules())
    return device.type == "cpu" or (device.type == "cuda" and grouped and precision in ("bf16", "tf32"))


def join_groups(module: nn.Module) -> None:
    """Let every grouped convolution with narrow groups compute two groups as one, which is faster in TF32.

    On an H200, with 16 channels per group, one convolution took 0.14 ms instead of 2.1 ms.
    """
    for child in module.modules():
        if type(child) is nn.Conv2d and _can_be_joined(child):
            child.__class__ = JoinedGroups


def _can_be_joined(convolution: nn.Conv2d) -> bool:
    """Tell if the groups are narrow. Depthwise convolutions are excluded: cuDNN has special kernels for them."""
    narrow = 1 < convolution.weight.shape[1] <= NARROW
    return narrow and convolution.groups % 2 == 0 and convolution.padding_mode == "zeros"


class JoinedGroups(nn.Conv2d):
    """A grouped convolution computed with half as many groups of twice the width; see `join_groups`."""

    def forward(self, x: Tensor) -> Tensor:
        weight = join_pairs(self.weight, self.groups)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups // 2)


def join_pairs(weight: Tensor, groups: int) -> Tensor:
    """Join the groups of a convolution's weight in pairs, without changing what the convolution computes.

    Each output channel gets weights of 0 for the input channels of the other group of its pair.

    Args:
        weight: (C', C, h, w), with C input channels per group.
        groups: number of groups, even.

    Returns:
        (C', 2 C, h, w), for groups / 2 groups.
    """
    width = weight.shape[1]
    first, second = weight.unflatten(0, (groups // 2, 2, -1)).unbind(1)
    return torch.stack([F.pad(first, (0, 0, 0, 0, 0, width)), F.pad(second, (0, 0, 0, 0, width, 0))], 1).flatten(0, 2)
