"""Parts as a user writes them, one of each kind; tests copy this file as `my_parts.py` into another directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import gan_dist
from gan_dist.rng import unit


@gan_dist.register_generator("tiny")
class G(nn.Module):
    def __init__(self, image_shape: Any, num_classes: int, z_dim: int, widths: Any = (), *, gain: float = 1.0) -> None:
        super().__init__()
        self.image_shape, self.num_classes, self.z_dim, self.gain = image_shape, num_classes, z_dim, gain
        self.label = nn.Embedding(num_classes, z_dim) if num_classes else None
        self.layer = nn.Linear(z_dim, int(np.prod(image_shape)))

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        z = z if self.label is None else z + self.label(y)
        return (self.gain * self.layer(z)).tanh().unflatten(1, self.image_shape)


@gan_dist.register_discriminator("tiny")
class D(nn.Module):
    @staticmethod
    def check(image_shape: Any, widths: Any) -> None:
        if image_shape[1] > 64:
            raise ValueError("makes at most 64 pixels")

    def __init__(
        self, image_shape: Any, num_classes: int, widths: Any = (), *, bias: bool = True, drop: float = 0.0
    ) -> None:
        super().__init__()
        self.drop = nn.Dropout(drop) if drop else nn.Identity()
        self.hidden = nn.Linear(int(np.prod(image_shape)), 16, bias=bias)
        self.label = nn.Embedding(num_classes, 16) if num_classes else None
        self.last = nn.Linear(16, 1)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        h = nn.functional.softplus(self.hidden(self.drop(x.flatten(1))))
        return self.last(h if self.label is None else h * (1 + self.label(y))).squeeze(1)


@gan_dist.register_loss("margin")
def margin(*, width: float = 1.0) -> gan_dist.Loss:
    return gan_dist.Loss(lambda r, f: torch.relu(width - r) + torch.relu(width + f), lambda f: -f)


@gan_dist.register_penalty("consistency")
def consistency(D: Any, x_real: Tensor, x_fake: Tensor, y: Tensor | None, u: Tensor, *, weight: float = 1.0) -> Tensor:
    return weight * (D(x_real, y) - D(x_real.flip(3), y)).square()


@gan_dist.register_augmentation("brighter", numbers=1)
def brighter(x: Tensor, bits: Tensor, *, by: float = 0.1) -> Tensor:
    return x + by * unit(bits).to(x.dtype)[:, :, None, None]


@gan_dist.register_dataset("stripes")
def stripes(root: Path, *, count: int = 60) -> Any:
    return Stripes(count)


class Stripes(torch.utils.data.Dataset):  # type: ignore[type-arg]
    classes = ("across", "down")

    def __init__(self, count: int) -> None:
        self.targets = [i % 2 for i in range(count)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        image = np.zeros((8, 8), np.uint8)
        image[index % 8] = 255
        noise = torch.randint(0, 20, (8, 8), dtype=torch.uint8).numpy()  # a random transform
        return (image if index % 2 else image.T) // 2 + noise, index % 2


@gan_dist.register_extractor("pixels")
class Pixels(nn.Module):
    num_features, num_logits = 64, 10

    def __init__(self, device: torch.device, *, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = images.float().flatten(1) / 255 * self.scale
        return x, x[:, :10]


@gan_dist.register_metric("gap")
def gap(real: Tensor, fake: Tensor, logits: Tensor, *, power: float = 1.0) -> Tensor:
    return (real.mean() - fake.mean()).abs() ** power


@gan_dist.register_tracker("lines")
class Lines:
    def __init__(self, run: Any, *, name: str = "lines.txt") -> None:
        self.path = run.run_dir / name

    def scalars(self, nimg: int, values: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(f"{nimg} {' '.join(sorted(values))}\n")

    def image(self, nimg: int, name: str, picture: np.ndarray) -> None:
        pass

    def rewind(self, nimg: int) -> None:
        pass

    def finish(self, outcome: str, artifact: Path | None = None) -> None:
        with self.path.open("a") as file:
            file.write(f"{outcome}\n")


@gan_dist.register_callback("count")
class Count:
    at_start = True

    def __init__(self, *, every_kimg: float = 0.1, fail_at: int = 0) -> None:
        self.every_kimg, self.fail_at, self.calls = every_kimg, fail_at, 0

    def __call__(self, context: Any) -> None:
        self.calls += 1
        if context.nimg >= self.fail_at > 0:
            raise ZeroDivisionError("too many")
        context.tracker.scalars(context.nimg, {"calls": self.calls, "known": len(context.metrics)})
        context.log.info("main: %s, call %d", context.is_main, self.calls)

    def state_dict(self) -> dict[str, int]:
        return {"calls": self.calls}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.calls = state["calls"]
