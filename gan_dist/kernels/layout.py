"""A finished network prepared for the device and the precision that it runs in: how its weights lie, and which kernels.

It computes what it did, and the names and shapes of its weights stay, so that checkpoints are the same everywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gan_dist.kernels import cpu

NARROW = 16  # channels of a group up to which cuDNN computes a grouped convolution in TF32 group by group


def adapt(module: nn.Module, precision: str) -> nn.Module:
    """Prepare a network, which is on its device, for fp64, fp32, tf32, bf16 or fp16; returns the same module."""
    device = next(module.parameters()).device
    if use_channels_last(module, device, precision):
        module.to(memory_format=torch.channels_last)
    if device.type == "cuda" and precision == "tf32":
        join_groups(module)
    if device.type == "cpu" and precision in ("fp32", "tf32"):
        cpu.convert(module)
    return module


def use_channels_last(module: nn.Module, device: torch.device, precision: str) -> bool:
    """Where a network with convolutions is faster with the channels of each pixel side by side.

    Measured: on a CPU every network; on an H200 R3GAN, whose convolutions are grouped, in bf16 and tf32. Nothing else
    was measured on a GPU, so the others stay as torch lays them out.
    """
    if precision == "fp64" or not any(parameter.ndim == 4 for parameter in module.parameters()):
        return False
    grouped = any(isinstance(child, nn.Conv2d) and child.groups > 1 for child in module.modules())
    return device.type == "cpu" or (device.type == "cuda" and grouped and precision in ("bf16", "tf32"))


def join_groups(module: nn.Module) -> None:
    """Let every grouped convolution with narrow groups compute two groups as one, which is faster in TF32.

    Measured on an H200, with 16 channels a group: 0.14 instead of 2.1 ms.
    """
    for child in module.modules():
        if type(child) is nn.Conv2d and _can_be_joined(child):
            child.__class__ = JoinedGroups


def _can_be_joined(convolution: nn.Conv2d) -> bool:
    """Its groups are narrow, but it is not depthwise, for which cuDNN has kernels of its own."""
    narrow = 1 < convolution.weight.shape[1] <= NARROW
    return narrow and convolution.groups % 2 == 0 and convolution.padding_mode == "zeros"


class JoinedGroups(nn.Conv2d):
    """A grouped convolution computed with half as many groups, twice as wide, and zeros between: see `join_groups`."""

    def forward(self, x: Tensor) -> Tensor:
        weight = join_pairs(self.weight, self.groups)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups // 2)


def join_pairs(weight: Tensor, groups: int) -> Tensor:
    """Weights (C', C, h, w) of so many groups to those (C', 2 C, h, w) of half as many that compute the same."""
    width = weight.shape[1]
    first, second = weight.unflatten(0, (groups // 2, 2, -1)).unbind(1)
    return torch.stack([F.pad(first, (0, 0, 0, 0, 0, width)), F.pad(second, (0, 0, 0, 0, width, 0))], 1).flatten(0, 2)
