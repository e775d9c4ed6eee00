"""Architectures: shapes, published sizes, initialisation, labels."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gan_dist import models
from gan_dist.game.regularizers import iterate_spectral_norms
from gan_dist.models import r3gan
from gan_dist.models._layers import MinibatchStd


@pytest.mark.parametrize("num_classes", [0, 5])
@pytest.mark.parametrize(
    ("name", "image_shape"),
    [
        ("mlp", (1, 28, 28)),
        ("mlp", (3, 6, 10)),
        ("mlp", (4, 8, 8)),
        *[("dcgan", (channels, size, size)) for size in (28, 32, 56, 64, 128) for channels in (1, 3)],
        *[(name, (3, size, size)) for name in ("sngan", "pggan", "r3gan") for size in (28, 32)],
        *[("sngan", (3, size, size)) for size in (48, 64)],
        pytest.param("sngan", (3, 128, 128), marks=pytest.mark.slow),
    ],
)
def test_shapes_and_range(name: str, image_shape: tuple[int, int, int], num_classes: int) -> None:
    architecture = models.architecture(name)
    architecture.check(image_shape)
    G = architecture.Generator(image_shape, num_classes, 16)
    D = architecture.Discriminator(image_shape, num_classes)
    y = torch.arange(4) % num_classes if num_classes else None
    x = G(10 * torch.randn(4, 16), y)
    assert x.shape == (4, *image_shape)
    if name in ("mlp", "dcgan", "sngan"):
        assert x.abs().max() <= 1
    assert D(x, y).shape == (4,)
    assert (G.image_shape, G.num_classes, G.z_dim) == (image_shape, num_classes, 16)


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_mlp_has_the_textbook_layers() -> None:
    architecture = models.architecture("mlp")

    def dense(*sizes: int) -> int:
        return sum((a + 1) * b for a, b in pairwise(sizes))

    assert _size(architecture.Generator((1, 28, 28), 0, 100)) == dense(100, 256, 512, 1024, 784)
    assert _size(architecture.Discriminator((1, 28, 28), 0)) == dense(784, 512, 256, 1)
    assert _size(architecture.Generator((1, 28, 28), 10, 100)) == dense(110, 256, 512, 1024, 784)
    assert _size(architecture.Discriminator((1, 28, 28), 10)) == dense(794, 512, 256, 1)


def test_dcgan_has_the_published_size() -> None:
    """3,576,704 and 2,765,568 weights for 64x64 RGB in PyTorch's DCGAN example, which leaves out the outer biases."""
    architecture = models.architecture("dcgan")
    assert _size(architecture.Generator((3, 64, 64), 0, 100)) == 3_576_704 + 3
    assert _size(architecture.Discriminator((3, 64, 64), 0)) == 2_765_568 + 64 + 1


def test_dcgan_is_initialised_as_in_the_paper() -> None:
    architecture = models.architecture("dcgan")
    for network in (architecture.Generator((3, 64, 64), 0, 100), architecture.Discriminator((3, 64, 64), 0)):
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                n = module.weight.numel()
                assert module.weight.std().item() == pytest.approx(0.02, rel=5 / (2 * n) ** 0.5)


@pytest.mark.parametrize("name", models.names())
def test_label_matters_and_must_be_given(name: str) -> None:
    architecture = models.architecture(name)
    G = architecture.Generator((1, 28, 28), 3, 8).eval()
    D = architecture.Discriminator((1, 28, 28), 3).eval()
    for network in (G, D):
        for module in network.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight)  # scales and shifts of all classes start alike
    z, y = torch.randn(1, 8), torch.tensor([0])
    x = G(z, y)
    assert not torch.equal(x, G(z, y + 1))
    assert not torch.equal(D(x, y), D(x, y + 1))
    for network, inputs in ((G, z), (D, x)):
        with pytest.raises(TypeError, match="conditional on 3 classes"):
            network(inputs)


@pytest.mark.parametrize("shape", [(1, 30, 30), (3, 32, 64), (3, 8, 8)])
def test_dcgan_says_what_it_can_make(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="nearest"):
        models.architecture("dcgan").check(shape)


@pytest.mark.parametrize(
    ("size", "num_classes", "generator", "discriminator"),
    [(32, 10, 20_781_952, 21_280_512), (64, 0, 22_429_824, 22_381_440), (256, 0, 23_057_952, 23_009_568)],
)
def test_r3gan_has_the_published_size(size: int, num_classes: int, generator: int, discriminator: int) -> None:
    """Of the authors' networks for CIFAR-10, FFHQ-64 and FFHQ-256."""
    with torch.device("meta"):
        assert _size(r3gan.Generator((3, size, size), num_classes, 64)) == generator
        assert _size(r3gan.Discriminator((3, size, size), num_classes)) == discriminator


def test_sngan_has_the_published_size() -> None:
    """For CIFAR-10, by the layers of the paper's tables 4 (a) and (b); G's blocks without biases."""
    architecture = models.architecture("sngan")

    def conv(a: int, b: int, size: int = 3) -> int:
        return (a * size**2 + 1) * b

    up = 2 * conv(256, 256) + conv(256, 256, 1) - 3 * 256 + 2 * 2 * 256
    assert _size(architecture.Generator((3, 32, 32), 0, 128)) == 129 * 4096 + 3 * up + 2 * 256 + conv(256, 3)
    first = conv(3, 128) + conv(128, 128) + conv(3, 128, 1)
    down = 2 * conv(128, 128) + conv(128, 128, 1)
    D = architecture.Discriminator((3, 32, 32), 0)
    assert _size(D) == first + down + 2 * 2 * conv(128, 128) + 129


def test_pggan_has_the_published_size() -> None:
    """23.1 million parameters each at 1024 pixels, with the last stage's way in or out alone (table 2 of the paper)."""
    architecture = models.architecture("pggan")
    with torch.device("meta"):
        G, D = architecture.Generator((3, 1024, 1024), 0, 512), architecture.Discriminator((3, 1024, 1024), 0)
        for network in (G, D):
            layers = network.to_image if hasattr(network, "to_image") else network.from_image
            assert round((_size(network) - sum(_size(layer) for layer in layers[:-1])) / 1e6, 1) == 23.1


def test_r3gan_block_is_the_equation() -> None:
    """x + W3 s(W2 s(W1 x + b1) + b2), with W2 applied group by group, pixel by pixel."""
    torch.manual_seed(0)
    block = r3gan.Block(4, num_blocks=3, group_size=2).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)

    def activation(h: Tensor) -> Tensor:
        return torch.where(h > 0, h, 0.2 * h)

    h = activation(torch.einsum("oi,nihw->nohw", block.conv1.weight[:, :, 0, 0], x) + block.conv1.bias[:, None, None])
    padded = torch.zeros(2, 8, 7, 7, dtype=torch.float64)
    padded[:, :, 1:6, 1:6] = h
    g = torch.zeros(2, 8, 5, 5, dtype=torch.float64)
    for channel in range(8):
        group = slice(channel // 2 * 2, channel // 2 * 2 + 2)
        for i in range(5):
            for j in range(5):
                window = padded[:, group, i : i + 3, j : j + 3]
                g[:, channel, i, j] = (window * block.conv2.weight[channel]).sum((1, 2, 3))
    expected = x + torch.einsum(
        "oi,nihw->nohw", block.conv3.weight[:, :, 0, 0], activation(g + block.conv2.bias[:, None, None])
    )
    torch.testing.assert_close(block(x), expected)


def test_r3gan_starts_as_fixup_says() -> None:
    """Branches start at 0; weights inside have the variance 2 / (1 + 0.2^2) / sqrt(L) / fan_in for L blocks."""
    block = r3gan.Block(128, num_blocks=16, group_size=16)
    assert not block.conv3.weight.any()
    for conv, fan_in in ((block.conv1, 128), (block.conv2, 16 * 9)):
        assert conv.weight.var().item() == pytest.approx(2 / 1.04 / 4 / fan_in, rel=0.05)


def test_r3gan_resampling_is_a_filter() -> None:
    """Zeros between the pixels, or every other pixel left out, and [1, 3, 3, 1] / 8 along rows and columns."""
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    row = torch.tensor([1.0, 3, 3, 1], dtype=torch.float64) / 8
    kernel = torch.outer(row, row)[None, None].repeat(3, 1, 1, 1)
    spread = torch.zeros(2, 3, 12, 12, dtype=torch.float64)
    spread[:, :, ::2, ::2] = x
    doubled = F.conv2d(F.pad(spread, (2, 1, 2, 1)), 4 * kernel, groups=3)
    torch.testing.assert_close(r3gan.double(x), doubled)
    torch.testing.assert_close(r3gan.halve(x), F.conv2d(F.pad(x, (1, 1, 1, 1)), kernel, groups=3)[:, :, ::2, ::2])
    flat = r3gan.halve(r3gan.double(torch.ones(1, 1, 8, 8)))
    torch.testing.assert_close(flat[:, :, 1:-1, 1:-1], torch.ones(1, 1, 6, 6))


def test_spectral_norm_is_the_largest_singular_value() -> None:
    torch.manual_seed(0)
    D = models.architecture("sngan").Discriminator((1, 28, 28), 5, [8, 8, 8, 8])
    weights = [module for module in D.modules() if hasattr(module, "parametrizations")]
    assert len(weights) == 2 * 4 + 2 + 2, "every convolution, the last layer and the embedding"
    before = [module.weight.clone() for module in weights]
    D(torch.randn(2, 1, 28, 28), torch.tensor([0, 1]))
    assert all(torch.equal(a, module.weight) for a, module in zip(before, weights)), "a forward pass changes nothing"
    for _ in range(200):
        iterate_spectral_norms(D)
    for module in weights:
        original = module.parametrizations.weight.original.flatten(1)
        largest = torch.linalg.svdvals(original)[0]
        torch.testing.assert_close(module.weight.flatten(1), original / largest, rtol=1e-3, atol=1e-5)


def test_projection_adds_the_product_with_the_class() -> None:
    """Equation 5 of Miyato & Koyama 2018: the labels' logits differ by <v_y - v_y', phi(x)>."""
    D = models.architecture("sngan").Discriminator((1, 28, 28), 3, [8, 8, 8, 8])
    features: list[Tensor] = []
    D.last.register_forward_hook(lambda _, inputs, __: features.append(inputs[0]))
    x = torch.randn(4, 1, 28, 28)
    a, b = (D(x, torch.full((4,), label)) for label in (0, 2))
    v = D.embedding.weight
    torch.testing.assert_close(a - b, features[0] @ (v[0] - v[2]))


def test_conditional_batch_norm_scales_and_shifts_by_class() -> None:
    G = models.architecture("sngan").Generator((1, 28, 28), 3, 8, [8, 8, 8])
    norm = G.blocks[0].norm1
    nn.init.normal_(norm.scale.weight)
    nn.init.normal_(norm.shift.weight)
    x, y = torch.randn(6, 8, 7, 7), torch.tensor([0, 1, 2, 2, 1, 0])
    mean, std = x.mean((0, 2, 3), keepdim=True), (x.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    normal = (x - mean) / std
    expected = torch.stack(
        [normal[i] * norm.scale.weight[c][:, None, None] + norm.shift.weight[c][:, None, None] for i, c in enumerate(y)]
    )
    torch.testing.assert_close(norm(x, y), expected, rtol=1e-4, atol=1e-5)


def test_attention_starts_as_nothing_and_mixes_places() -> None:
    architecture = models.architecture("sngan")
    G = architecture.Generator((1, 28, 28), 0, 8, [8, 8, 8], attention=14).eval()
    x = torch.randn(2, 8, 14, 14, requires_grad=True)
    torch.testing.assert_close(G.attention(x), x)
    nn.init.ones_(G.attention.gamma)
    (gradient,) = torch.autograd.grad(G.attention(x)[0, 0, 0, 0], x)
    assert gradient[0, :, 7:, 7:].any(), "far places count"
    assert not gradient[1].any(), "other samples do not"
    with pytest.raises(ValueError, match="attention to maps of 14, 28 pixels, not of 16"):
        architecture.Generator((1, 28, 28), 0, 8, [8, 8, 8], attention=16)


def test_minibatch_deviation_by_hand() -> None:
    x = torch.zeros(8, 2, 3, 3)
    x[:4, 0] = torch.tensor([0.0, 0.0, 4.0, 4.0])[:, None, None]  # deviation 2 in one of two channels
    joined = MinibatchStd()(x)
    assert torch.equal(joined[:, :2], x)
    torch.testing.assert_close(joined[:4, 2], torch.full((4, 3, 3), 1.0), atol=1e-4, rtol=0)
    torch.testing.assert_close(joined[4:, 2], torch.zeros(4, 3, 3), atol=2e-4, rtol=0)
    torch.testing.assert_close(MinibatchStd()(x[:4]), joined[:4])


@pytest.mark.parametrize("stage", [1, 2])
def test_fade_lies_between_two_networks(stage: int) -> None:
    """At alpha 0 that of the stage before, on halved images or enlarged; at 1 this stage's; between, on the line."""
    torch.manual_seed(0)
    architecture = models.architecture("pggan")
    G = architecture.Generator((1, 28, 28), 0, 8, [8, 8, 8])
    z = torch.randn(4, 8)
    G.stage = stage - 1
    before = F.interpolate(G(z), scale_factor=2, mode="nearest")
    G.stage = stage
    ends = []
    for alpha in (0.0, 1.0, 0.25):
        G.alpha.fill_(alpha)
        ends.append(G(z))
    assert ends[0].shape == (4, 1, 7 * 2**stage, 7 * 2**stage)
    torch.testing.assert_close(ends[0], before)
    torch.testing.assert_close(ends[2], 0.75 * ends[0] + 0.25 * ends[1])
    G.to_image[stage - 1].bias.data.add_(1)
    G.alpha.fill_(1.0)
    assert torch.equal(G(z), ends[1]), "nothing is left of the old way out"

    D = architecture.Discriminator((1, 28, 28), 0, [8, 8, 8])
    x = torch.randn(4, 1, 7 * 2**stage, 7 * 2**stage)
    D.stage = stage - 1
    before = D(F.avg_pool2d(x, 2))
    D.stage = stage
    D.alpha.fill_(0.0)
    torch.testing.assert_close(D(x), before)
    D.alpha.fill_(1.0)
    whole = D(x)
    D.from_image[stage - 1].bias.data.add_(1)
    assert torch.equal(D(x), whole), "nothing is left of the old way in"


@pytest.mark.parametrize("part", ["Generator", "Discriminator"])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_growing_network_knows_what_a_stage_does_without(part: str, stage: int) -> None:
    architecture = models.architecture("pggan")
    arguments = ((1, 28, 28), 0, 8, [8, 8, 8]) if part == "Generator" else ((1, 28, 28), 0, [8, 8, 8])
    network = getattr(architecture, part)(*arguments)
    network.stage = stage
    network.alpha.fill_(0.5)
    size = 7 * 2**stage
    network(torch.randn(4, 8) if part == "Generator" else torch.randn(4, 1, size, size)).square().sum().backward()
    unused = {id(p) for p in network.unused()}
    assert {id(p) for p in network.parameters() if p.grad is None} == unused


def test_grown_generator_is_saved_with_its_stage() -> None:
    architecture = models.architecture("pggan")
    G = architecture.Generator((1, 28, 28), 0, 8, [8, 8, 8])
    G.stage = 1
    G.alpha.fill_(0.25)
    again = architecture.Generator((1, 28, 28), 0, 8, [8, 8, 8]).eval()
    again.load_state_dict(G.state_dict())
    z = torch.randn(2, 8)
    assert again(z).shape == (2, 1, 28, 28), "outside training an image is enlarged"
    torch.testing.assert_close(again(z)[:, :, ::2, ::2], G(z))
    for stage in (3, -1):
        with pytest.raises(RuntimeError, match="not one of 0 to 2"):
            again.load_state_dict({**G.state_dict(), "_extra_state": torch.tensor(stage)})
