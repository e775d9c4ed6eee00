"""Batch normalization over two processes, in one: where both have the same batch, every sum is twice their own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gan_dist.parallel.sync_batch_norm import convert


@pytest.mark.parametrize("shape", [(4, 3, 5, 5), (6, 3)])
@pytest.mark.parametrize("penalised", [False, True])
def test_batch_is_that_of_all_processes(shape: tuple[int, ...], penalised: bool) -> None:
    """Output, running statistics and gradients, also where they are differentiated again."""
    torch.manual_seed(0)
    plain = (nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)(3).double()
    nn.init.normal_(plain.weight)
    nn.init.normal_(plain.bias)
    together = convert(type(plain)(3).double(), lambda tensor: 2 * tensor, 2)
    together.load_state_dict(plain.state_dict())
    x = torch.randn(shape, dtype=torch.float64)
    factors = torch.randn(shape, dtype=torch.float64)
    results = []
    for norm, copies in ((together, 1), (plain, 2)):
        batch = x.repeat(copies, *[1] * (x.ndim - 1)).requires_grad_()
        y = norm(batch)
        loss = (y.square() * factors.repeat(copies, *[1] * (x.ndim - 1))).sum()
        (gradient,) = torch.autograd.grad(loss, batch, create_graph=penalised)
        if penalised:
            (gradient,) = torch.autograd.grad(gradient.square().sum(), batch)
        results.append((y[: len(x)].detach(), gradient[: len(x)]))
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(together.state_dict(), plain.state_dict())
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(together.eval()(x), plain.eval()(x))
