"""Batch normalization over the global batch, the batches of all processes, with derivatives of any order.

torch's own `SyncBatchNorm` runs on GPUs only, and it cannot be differentiated twice, which gradient penalties need.
This one runs on any device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# A function from a tensor to its sum over all processes (an all-reduce). It need not be differentiable.
AllSum = Callable[[Tensor], Tensor]


def convert(module: nn.Module, all_sum: AllSum, world_size: int) -> nn.Module:
    """Turn every batch normalization inside a module into a `SyncBatchNorm`; returns the same module.

    Parameters and buffers, and their names, do not change.

    Args:
        module: the network.
        all_sum: the all-reduce to use.
        world_size: number of processes.
    """
    for child in module.modules():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            child.__class__ = SyncBatchNorm
            vars(child).update(all_sum=all_sum, world_size=world_size)
    return module


class SyncBatchNorm(nn.BatchNorm2d):
    """Batch normalization of x (N, C) or (N, C, H, W) over all processes. `convert` makes it.

    N must be the same in all processes.
    """

    all_sum: AllSum
    world_size: int

    def _check_input_dim(self, _: Tensor) -> None:
        """Accept (N, C) as well as (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        n = x.numel() // x.shape[1] * self.world_size
        with torch.no_grad():
            mean, var = torch.batch_norm_update_stats(_wide(x), None, None, 0.0)  # of this process's batch only
            mean, var = _combine(mean, var, self.all_sum, self.world_size)
            if self.running_mean is not None and self.running_var is not None and self.momentum is not None:
                self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
                self.running_var.lerp_((var * n / (n - 1)).to(self.running_var), self.momentum)
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked.add_(1)
        dtype = _wide(x).dtype
        scale_and_shift: Sequence[Tensor] = (self.weight, self.bias)
        if not self.affine:  # scale 1 and shift 0, which require gradients because `_Normalise` computes them always
            scale_and_shift = [torch.full_like(mean, i, dtype=dtype, requires_grad=True) for i in (1.0, 0.0)]
        return _Normalise.apply(x, *scale_and_shift, mean.to(dtype), var.to(dtype), n, self)


def _combine(mean: Tensor, var: Tensor, all_sum: AllSum, world_size: int) -> tuple[Tensor, Tensor]:
    """Combine each process's mean and biased variance (C,) to those of the global batch, float64, by one all-reduce."""
    mean, var = mean.double(), var.double()  # the difference below would lose too many digits in float32
    mean, square = all_sum(torch.stack([mean, var + mean.square()])) / world_size
    return mean, square - mean.square()


def _wide(x: Tensor) -> Tensor:
    """x in float32, or in float64 if it is float64 already."""
    return x if x.dtype == torch.float64 else x.float()


class _Normalise(torch.autograd.Function):
    """y = (x - mean) / sqrt(var + eps) * weight + bias, where mean and var depend on the x of all processes.

    torch's kernels compute first derivatives. For higher derivatives autograd differentiates `_formula`.

    Args:
        n: number of values per channel in the global batch.
        norm: the layer, for its eps and its all-reduce.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, n: int, norm: SyncBatchNorm
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias, mean, var)
        ctx.n, ctx.norm = n, norm
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=norm.eps)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, var = ctx.saved_tensors
        norm: SyncBatchNorm = ctx.norm
        if torch.is_grad_enabled():  # the result will be differentiated again
            y = _formula(x, weight, bias, norm)
            return *torch.autograd.grad(y, (x, weight, bias), g, create_graph=True), None, None, None, None
        rstd = (var + norm.eps).rsqrt()
        # This is the gradient for fixed mean and var. The code after it adds the part that goes through mean and var.
        gx, g_weight, g_bias = torch.ops.aten.native_batch_norm_backward(
            g, x, weight, mean, var, mean, rstd, False, norm.eps, [True, True, True]
        )
        sum_bias, sum_weight = norm.all_sum(torch.stack([g_bias, g_weight]))
        shape = [-1 if d == 1 else 1 for d in range(x.ndim)]
        slope = -weight * rstd.square() * sum_weight / ctx.n
        offset = -weight * rstd * sum_bias / ctx.n - slope * mean
        gx.add_(offset.to(gx).view(shape)).addcmul_(x, slope.to(gx).view(shape))
        return gx, g_weight, g_bias, None, None, None, None


class _Sum(torch.autograd.Function):
    """A differentiable `all_sum`: its derivative, of any order, is again an `all_sum`."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, all_sum: AllSum) -> Tensor:
        ctx.all_sum = all_sum
        return all_sum(tensor)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return _Sum.apply(g, ctx.all_sum), None


def _formula(x: Tensor, weight: Tensor, bias: Tensor, norm: SyncBatchNorm) -> Tensor:
    """Batch normalization of x by operations that autograd can differentiate any number of times."""
    var, mean = torch.var_mean(_wide(x), [d for d in range(x.ndim) if d != 1], correction=0)
    mean, var = _combine(mean, var, lambda tensor: _Sum.apply(tensor, norm.all_sum), norm.world_size)
    shape = [-1 if d == 1 else 1 for d in range(x.ndim)]
    scale = (var + norm.eps).rsqrt() * weight
    shift = bias - mean * scale
    wide = _wide(x)
    return torch.addcmul(shift.to(wide).view(shape), wide, scale.to(wide).view(shape)).to(x.dtype)
