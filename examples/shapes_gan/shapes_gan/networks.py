"""The architecture "upsampling": G enlarges a small map step by step, D makes it small again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gan_dist import register_discriminator, register_generator

WIDTHS = (32, 16)  # channels of G after each enlargement; those of D are the same in the other order


def _check(image_shape: tuple[int, int, int], widths: Sequence[int]) -> None:
    steps = len(widths or WIDTHS)
    if any(size % 2**steps for size in image_shape[1:]):
        raise ValueError(f"doubles the size {steps} times: height and width must divide by {2**steps}")


@register_generator("upsampling")
class Generator(nn.Module):
    """z (N, z_dim), y (N,) -> images (N, C, H, W) in [-1, 1]."""

    check = staticmethod(_check)

    def __init__(
        self, image_shape: tuple[int, int, int], num_classes: int, z_dim: int, widths: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.image_shape, self.num_classes, self.z_dim = image_shape, num_classes, z_dim
        widths = widths or WIDTHS
        channels, *size = image_shape
        small = [side // 2 ** len(widths) for side in size]
        self.label = nn.Embedding(num_classes, z_dim) if num_classes else None
        layers: list[nn.Module] = [
            nn.Linear(z_dim, widths[0] * small[0] * small[1]),
            nn.Unflatten(1, (widths[0], *small)),
        ]
        for narrow, wide in zip((*widths[1:], widths[-1]), widths):
            layers += [nn.ReLU(), nn.Upsample(scale_factor=2), nn.Conv2d(wide, narrow, 3, padding=1)]
        self.layers = nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(widths[-1], channels, 3, padding=1), nn.Tanh())

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        if self.label is not None:
            z = z * (1 + self.label(y))
        return self.layers(z)


@register_discriminator("upsampling")
class Discriminator(nn.Module):
    """x (N, C, H, W), y (N,) -> logits (N,).

    Args:
        slope: slope of the activations below 0; the setting is `model.d_args.slope`.
    """

    check = staticmethod(_check)

    def __init__(
        self, image_shape: tuple[int, int, int], num_classes: int, widths: Sequence[int] = (), *, slope: float = 0.2
    ) -> None:
        super().__init__()
        widths = widths or WIDTHS[::-1]
        inputs = (image_shape[0], *widths)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 4, stride=2, padding=1), nn.LeakyReLU(slope)) for a, b in zip(inputs, widths)
        )
        self.last = nn.Linear(widths[-1], 1)
        self.label = nn.Embedding(num_classes, widths[-1]) if num_classes else None

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        for block in self.blocks:
            x = block(x)
        features = x.mean((2, 3))
        logits = self.last(features).squeeze(1)
        return logits if self.label is None else logits + torch.sum(features * self.label(y), dim=1)

    def freezable(self) -> list[nn.Module]:
        """Return the blocks, so that init.freeze_D can freeze them."""
        return [*self.blocks]
