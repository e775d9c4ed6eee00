"""The alternating optimisation of a GAN (Goodfellow et al. 2014, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gan_dist import rng
from gan_dist.data.loader import Preprocess
from gan_dist.distributed import Distributed
from gan_dist.losses import Loss
from gan_dist.regularizers import squared_gradient_norm
from gan_dist.rng import Purpose
from gan_dist.state import State
from gan_dist.stats import RunningMeans


class Alternation:
    """`n_critic` steps of D, then one of G, on batches that the processes share.

    Args:
        state: what is trained.
        dist: this process's place among all.
        loss: the game's two sides.
        preprocess: uint8 images to what D sees.
        class_probs: probabilities of the labels that G is asked for, (num_classes,); None if it takes no label.
        batch_size: global batch; each process runs its share of it in micro-batches of at most `micro_batch_size`.
        seed: key of the latents and labels.
        schedule_G, schedule_D: images seen -> learning rate.
        r1_gamma, r1_interval: R1 weight, and every how many D steps it is applied (Karras et al. 2020, "Analyzing and
            improving the image quality of StyleGAN", section 3.1: lazy regularization).
        label_smoothing, d_half: see `gan_dist.config.Loss`.
        skip_nonfinite: take no step with a gradient that is not finite.
    """

    def __init__(
        self,
        state: State,
        dist: Distributed,
        stats: RunningMeans,
        loss: Loss,
        preprocess: Preprocess,
        class_probs: Tensor | None,
        *,
        batch_size: int,
        micro_batch_size: int,
        n_critic: int,
        seed: int,
        schedule_G: Callable[[int], float],
        schedule_D: Callable[[int], float],
        r1_gamma: float,
        r1_interval: int,
        label_smoothing: float,
        d_half: bool,
        skip_nonfinite: bool,
    ) -> None:
        self.state, self.dist, self.stats = state, dist, stats
        self.loss, self.preprocess, self.class_probs = loss, preprocess, class_probs
        self.batch_size, self.n_critic, self.seed = batch_size, n_critic, seed
        self.schedule_G, self.schedule_D = schedule_G, schedule_D
        self.r1_gamma, self.r1_interval = r1_gamma, r1_interval
        self.label_smoothing, self.d_half = label_smoothing, d_half
        self.skip_nonfinite = skip_nonfinite
        self.micro_batch_size = micro_batch_size or batch_size
        self.z_dim: int = state.G.z_dim  # type: ignore[assignment]
        # Wrapped, a module's gradients are averaged over processes. The state's own modules have none of that.
        self.G, self.D = dist.prepare_model(state.G), dist.prepare_model(state.D)
        self.opt_G = dist.prepare_optimizer(state.opt_G, state.scalers.get("G"))
        self.opt_D = dist.prepare_optimizer(state.opt_D, state.scalers.get("D"))

    def __call__(self, batches: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """One iteration; returns the norms of D's (the last) and of G's gradient."""
        for _ in range(self.n_critic):
            norm_D = self.d_step(*next(batches))
        return norm_D, self.g_step()

    def reseed(self, seed: int) -> None:
        """Draw other latents, labels and flips from now on."""
        self.seed = self.preprocess.seed = seed

    def d_step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Improve D on a batch of real images and as many generated ones; returns the norm of its gradient.

        Args:
            images, labels: this process's share of the global batch, uint8 (N, C, H, W) and int64 (N,).
        """
        state = self.state
        self.D.requires_grad_(True)
        self.opt_D.zero_grad()
        _set_lr(state.opt_D, self.schedule_D(state.nimg))
        penalise = self.r1_gamma > 0 and (state.nimg // self.batch_size) % self.r1_interval == 0

        micro_batches = list(self._micro_batches())
        for first, part in micro_batches:
            x_real = self.preprocess(images[part], first).requires_grad_(penalise)
            y_real = labels[part] if self.class_probs is not None else None
            z, y = self._draw(Purpose.D_LATENT, Purpose.D_LABEL, first, len(x_real))
            with torch.no_grad():
                x_fake = state.G(z, y)
            with self.dist.micro_batch(self.D, last=part is micro_batches[-1][1]):
                real, fake = self.D(x_real, y_real), self.D(x_fake, y)
                loss = self.loss.D(real, fake, self.label_smoothing) * (0.5 if self.d_half else 1.0)
                self.stats.add("loss_D", loss.mean())
                self.stats.add("D_real", real.mean())
                self.stats.add("D_fake", fake.mean())
                if penalise:
                    r1 = squared_gradient_norm(self._precise_logits(real, x_real, y_real), x_real)
                    self.stats.add("r1", r1.mean())
                    loss = loss + 0.5 * self.r1_gamma * self.r1_interval * r1
                self.dist.backward(loss.mean() / len(micro_batches), self.opt_D)
        norm = self._optimise("D", state.D, self.opt_D)
        state.nimg += self.batch_size
        return norm

    def g_step(self) -> Tensor:
        """Improve G against D, which is frozen and outside its wrapper: no gradient of it is computed or sent."""
        state = self.state
        self.D.requires_grad_(False)
        self.opt_G.zero_grad()
        _set_lr(state.opt_G, self.schedule_G(state.nimg))

        micro_batches = list(self._micro_batches())
        for first, part in micro_batches:
            z, y = self._draw(Purpose.G_LATENT, Purpose.G_LABEL, first, part.stop - part.start)
            with self.dist.micro_batch(self.G, last=part is micro_batches[-1][1]):
                loss = self.loss.G(state.D(self.G(z, y), y)).mean()
                self.stats.add("loss_G", loss)
                self.dist.backward(loss / len(micro_batches), self.opt_G)
        return self._optimise("G", state.G, self.opt_G)

    def _precise_logits(self, logits: Tensor, x: Tensor, y: Tensor | None) -> Tensor:
        """D(x) in fp32, for penalties: the same logits, unless they were computed in less."""
        if self.dist.precision not in ("bf16", "fp16"):
            return logits
        with self.dist.full_precision(self.D):
            return self.D(x, y)

    def _optimise(self, name: str, module: nn.Module, optimizer: Any) -> Tensor:
        """Step with the gradients that are there, and return their norm."""
        self.dist.unscale(optimizer)
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        self.stats.add(f"grad_norm_{name}", norm)
        broken = ~norm.isfinite()
        if self.skip_nonfinite or optimizer.scaler:
            self.stats.add(f"skipped_{name}", broken.float())
        # In fp16 an overflow halves this optimizer's loss scale and skips this step alone.
        if self.skip_nonfinite and not optimizer.scaler:
            if optimizer.optimizer.defaults.get("fused"):
                optimizer.optimizer.found_inf = broken.float()  # the kernel skips: the host need not know
            elif broken:
                return norm
        optimizer.step()
        return norm

    def _micro_batches(self) -> Iterator[tuple[int, slice]]:
        """(number of the first image in the run, slice of this process's share) of each micro-batch."""
        share = self.dist.share(self.batch_size)
        for start in range(0, len(share), self.micro_batch_size):
            yield self.state.nimg + share[start], slice(start, min(start + self.micro_batch_size, len(share)))

    def _draw(self, latent: Purpose, label: Purpose, first: int, count: int) -> tuple[Tensor, Tensor | None]:
        """Fresh latents (count, z_dim), and labels (count,) if G takes them, on the device."""
        weight = next(self.state.G.parameters())
        z = rng.latents(self.seed, latent, first, count, self.z_dim, like=weight)
        if self.class_probs is None:
            return z, None
        return z, rng.to_device(rng.labels(self.seed, label, first, count, self.class_probs), weight.device)


def _set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
