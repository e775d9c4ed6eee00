"""One training iteration: the alternating optimisation of D and G (Goodfellow et al. 2014, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from gan_dist.checkpoint.state import State
from gan_dist.engine.draws import Draws
from gan_dist.engine.ema import Average
from gan_dist.engine.growth import Growth
from gan_dist.engine.stats import RunningMeans
from gan_dist.engine.update import Update
from gan_dist.game.game import Game
from gan_dist.game.regularizers import (
    clip_weights,
    gradient_penalty,
    interpolate,
    iterate_spectral_norms,
    squared_gradient_norms,
)
from gan_dist.parallel.wrapped import Wrapped
from gan_dist.rng import Purpose

Pair = tuple[Tensor, Tensor | None]  # images x and labels y for D; no labels if D is unconditional


class Alternation:
    """One iteration: `game.n_critic` steps of D, then one step of G, then the update of G_ema.

    Args:
        state: the networks without wrappers, and the number of images that D has seen.
        wrapped: the same networks in DistributedDataParallel, which averages gradients over all processes.
        growth: the current stage of progressive growing, which says the global batch and the micro-batches.
        game: the loss and the penalties.
        draws: draws latents and labels, and prepares images for D.
        updates: the `Update` of "G" and of "D".
        average: how fast G_ema follows G.
        stats: gets losses, logits, penalties and gradient norms.

    Attributes:
        separable: D may see real and generated images in one pass, because it has no batch normalization.
    """

    def __init__(
        self,
        state: State,
        wrapped: Wrapped,
        growth: Growth,
        game: Game,
        draws: Draws,
        updates: dict[str, Update],
        average: Average,
        stats: RunningMeans,
    ) -> None:
        self.state, self.wrapped, self.growth = state, wrapped, growth
        self.game, self.draws, self.average, self.stats = game, draws, average, stats
        self.update_G, self.update_D = updates["G"], updates["D"]
        # In one pass, batch normalization would compute its statistics over real and generated images together.
        self.separable = not any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in state.D.modules())

    def __call__(self, batches: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Make one iteration; returns the gradient norms of the last D step and of the G step, scalars on the device.

        Args:
            batches: this process's shares of the global batches.
        """
        before = self.state.nimg
        for _ in range(self.game.n_critic):
            images, labels = next(batches)
            norm_D = self.d_step(images, labels)
        norm_G = self.g_step(images, labels)
        self.average.update(self.state.G_ema, self.state.G, self.state.nimg - before, before)
        return norm_D, norm_G

    def d_step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Train D on real images and as many generated images; returns the norm of D's gradient.

        Args:
            images: this process's share of the global batch, as stored, usually uint8 (N, C, H, W).
            labels: their labels, int64 (N,).
        """
        state, game, penalties, draws = self.state, self.game, self.game.penalties, self.draws
        state.D.requires_grad_(True)
        self.update_D.begin(state.nimg)
        iterate_spectral_norms(state.D)
        penalise = (state.nimg // self.growth.batch_size) % penalties.interval == 0
        r1, r2 = penalise and penalties.r1_gamma > 0, penalise and penalties.r2_gamma > 0
        micro_batches = list(self.growth.micro_batches(state.nimg))
        for first, part in micro_batches:
            x_real, y_real = draws.real_images(images[part], first), draws.labels_of(labels[part])
            y = y_real if game.same_labels else draws.labels(Purpose.D_LABEL, first, len(x_real))
            z = draws.latents(Purpose.D_LATENT, first, len(x_real))
            with torch.no_grad():
                x_fake = draws.augmented(state.G(z, y), Purpose.AUGMENT_D_FAKE, first)
            x_real.requires_grad_(r1)
            x_fake.requires_grad_(r2)
            last = part is micro_batches[-1][1]
            with self.wrapped.D.micro_batch(last), self.wrapped.D.twice_differentiable(r1 or r2):
                # If only one of R1 and R2 is applied, a joint pass would compute second derivatives of both halves.
                real, fake = self._logits((x_real, y_real), (x_fake, y), together=self.separable and r1 == r2)
                loss = self._loss_D(real, fake)
                if penalise:
                    penalty = self._penalty(first, (x_real, y_real), x_fake, torch.cat([real, fake]))
                    loss = loss + penalties.interval * penalty
                self.update_D.backward(loss.mean() / len(micro_batches))
        norm = self.update_D.step()
        if penalties.clip_weights:
            clip_weights(state.D.parameters(), penalties.clip_weights)
        state.nimg += self.growth.batch_size
        return norm

    def g_step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Train G; returns the norm of G's gradient.

        D's weights are frozen, and D is called without its wrapper, so its gradients are neither computed nor sent.

        Args:
            images, labels: the batch of the last D step. Only a paired loss uses the images: it compares each generated
                image with a real one.
        """
        state, game, draws = self.state, self.game, self.draws
        state.D.requires_grad_(False)
        self.update_G.begin(state.nimg)
        micro_batches = list(self.growth.micro_batches(state.nimg))
        for first, part in micro_batches:
            count = part.stop - part.start
            y = draws.labels_of(labels[part]) if game.same_labels else draws.labels(Purpose.G_LABEL, first, count)
            z = draws.latents(Purpose.G_LATENT, first, count)
            with self.wrapped.G.micro_batch(last=part is micro_batches[-1][1]):
                fake = state.D(draws.augmented(self.wrapped.G(z, y), Purpose.AUGMENT_G_FAKE, first), y)
                if game.loss.paired:
                    real = state.D(draws.real_images(images[part], first - self.growth.batch_size), y)
                    loss = game.loss.G(fake, real)
                else:
                    loss = game.loss.G(fake)
                self.stats.add("loss_G", loss.mean())
                self.update_G.backward(loss.mean() / len(micro_batches))
        return self.update_G.step()

    def _logits(self, real: Pair, fake: Pair, together: bool) -> Sequence[Tensor]:
        """Compute D's logits of real and of generated images, (N,) each, together in one pass or in two passes."""
        if not together:
            return self.wrapped.D(*real), self.wrapped.D(*fake)
        (x_real, y_real), (x_fake, y) = real, fake
        labels = None if y_real is None or y is None else torch.cat([y_real, y])
        return self.wrapped.D(torch.cat([x_real, x_fake]), labels).split(len(x_real))

    def _loss_D(self, real: Tensor, fake: Tensor) -> Tensor:
        """Compute D's loss of each sample, (N,), from the logits, with the drift penalty but no gradient penalty."""
        game = self.game
        smoothing = (game.label_smoothing,) if game.loss.has_target else ()
        loss = game.loss.D(real, fake, *smoothing) * (0.5 if game.d_half else 1.0)
        self.stats.add("loss_D", loss.mean())
        self.stats.add("D_real", real.mean())
        self.stats.add("D_fake", fake.mean())
        if game.loss.critic:
            self.stats.add("distance", (real - fake).mean())
        return loss + game.penalties.drift * real.square() if game.penalties.drift else loss

    def _penalty(self, first: int, real: Pair, x_fake: Tensor, logits: Tensor) -> Tensor:
        """Compute the sum of the gradient penalties (R1, R2, WGAN-GP) for each pair of a real and a fake image: (N,).

        Args:
            first: number, in the run, of the first image of this micro-batch.
            real: real images and their labels.
            x_fake: generated images (N, C, H, W).
            logits: D's logits of the real and then of the generated images, (2N,).
        """
        (x_real, y), penalties = real, self.game.penalties
        total = torch.zeros_like(logits[: len(x_real)], dtype=x_real.dtype)
        sides = {"r1": (penalties.r1_gamma, x_real), "r2": (penalties.r2_gamma, x_fake)}
        sides = {name: side for name, side in sides.items() if side[0]}
        norms = squared_gradient_norms(logits, *(x for _, x in sides.values())) if sides else []
        for (name, (gamma, _)), norm in zip(sides.items(), norms):
            self.stats.add(name, norm.mean())
            total = total + 0.5 * gamma * penalties.gamma_scale(self.state.nimg) * norm
        if penalties.gradient_penalty:
            u = self.draws.between(first, x_real)
            x = interpolate(x_real.detach(), x_fake.detach(), u).requires_grad_()
            with self.wrapped.D.twice_differentiable():
                penalty = gradient_penalty(self.wrapped.D(x, y), x)
            self.stats.add("gradient_penalty", penalty.mean())
            total = total + penalties.gradient_penalty * penalty
        return total
