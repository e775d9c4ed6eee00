"""DCGAN (Radford et al. 2015, "Unsupervised representation learning with deep convolutional GANs").

G and D use strided and transposed convolutions, batch normalization and weights initialised from N(0, 0.02^2). G
starts from a map of 4 to 7 pixels a side (7x7 for images of 28 and 56 pixels) and doubles it with every transposed
convolution. D halves its maps in the reverse order. A conditional G gets the label appended to z as a one-hot code, and
a conditional D gets the label appended to the image as one-hot channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from gan_dist.models._layers import join_label, map_sizes


def check(image_shape: tuple[int, int, int], g_widths: Sequence[int] = (), d_widths: Sequence[int] = ()) -> None:
    """Check that images are square, of 16 to 256 pixels a side, and that there is one width per doubling of the map.

    Raises:
        ValueError: they are not; the message names the nearest possible size or the number of widths.
    """
    doublings = len(map_sizes(image_shape)) - 1
    for widths in (g_widths, d_widths):
        if widths and len(widths) != doublings:
            raise ValueError(f"needs {doublings} widths for {image_shape[1]} pixels, not {len(widths)}")


def _initialise(module: nn.Module) -> None:
    """Initialise convolutions with N(0, 0.02^2) (section 3), batch normalization with scales N(1, 0.02^2), shifts 0."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


class Generator(nn.Module):
    """G: latents z (N, z_dim) and labels y (N,) -> images (N, C, H, W) in [-1, 1].

    Args:
        image_shape: (C, H, W).
        num_classes: number of classes; 0 for an unconditional G.
        z_dim: size of the latent z.
        widths: channels of the maps, from the first map to the last one before the image. By default the last map has
            64 channels, and each earlier map has twice as many as the next one.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], num_classes: int, z_dim: int, widths: Sequence[int] = ()
    ) -> None:
        super().__init__()
        check(image_shape, g_widths=widths)
        self.image_shape = image_shape
        self.num_classes = num_classes
        self.z_dim = z_dim
        channels = image_shape[0]
        first, *larger = map_sizes(image_shape)
        widths = widths or [64 * 2**i for i in reversed(range(len(larger)))]
        layers: list[nn.Module] = [nn.ConvTranspose2d(z_dim + num_classes, widths[0], first, bias=False)]
        for inputs, outputs in zip(widths, [*widths[1:], None]):
            layers += [nn.BatchNorm2d(inputs), nn.ReLU(inplace=True)]
            if outputs:
                layers += [nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1, bias=False)]
        layers += [nn.ConvTranspose2d(widths[-1], channels, 4, stride=2, padding=1), nn.Tanh()]
        self.layers = nn.Sequential(*layers).apply(_initialise)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        return self.layers(join_label(z, y, self.num_classes)[:, :, None, None])


class Discriminator(nn.Module):
    """D: images x (N, C, H, W) and labels y (N,) -> logits (N,).

    Args:
        image_shape: (C, H, W).
        num_classes: number of classes; 0 for an unconditional D.
        widths: channels of the maps, from the first map after the image. By default 64, doubled with every layer.
        batch_norm: use batch normalization. Without it a sample's logit depends on that sample only, which gradient
            penalties require.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        widths: Sequence[int] = (),
        *,
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        check(image_shape, d_widths=widths)
        self.num_classes = num_classes
        channels = image_shape[0]
        first, *larger = map_sizes(image_shape)
        widths = widths or [64 * 2**i for i in range(len(larger))]
        layers: list[nn.Module] = [
            nn.Conv2d(channels + num_classes, widths[0], 4, stride=2, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
        ]
        for inputs, outputs in pairwise(widths):
            layers += [nn.Conv2d(inputs, outputs, 4, stride=2, padding=1, bias=not batch_norm)]
            layers += [nn.BatchNorm2d(outputs)] if batch_norm else []
            layers += [nn.LeakyReLU(0.2, inplace=True)]
        layers += [nn.Conv2d(widths[-1], 1, first)]
        self.layers = nn.Sequential(*layers).apply(_initialise)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self.layers(join_label(x, y, self.num_classes)).flatten()

    def freezable(self) -> list[nn.Module]:
        """Return the blocks of D before its last layer, from the image on: convolutions with what follows each."""
        starts = [i for i, layer in enumerate(self.layers) if isinstance(layer, nn.Conv2d)]
        return [self.layers[first:next_one] for first, next_one in pairwise(starts)]
