"""The alternating optimisation of a GAN (Goodfellow et al. 2014, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gan_dist import rng
from gan_dist.checkpoint.state import State
from gan_dist.data.loader import Preprocess
from gan_dist.engine.schedules import Stage
from gan_dist.engine.stats import RunningMeans
from gan_dist.game.augment import Augment
from gan_dist.game.losses import Loss
from gan_dist.game.regularizers import (
    clip_weights,
    interpolate,
    iterate_spectral_norms,
    lipschitz_penalty,
    squared_gradient_norms,
)
from gan_dist.models import Growing
from gan_dist.parallel.distributed import Distributed
from gan_dist.rng import Purpose

Judged = tuple[Tensor, Tensor | None]  # images x and labels y, as D takes them


@dataclass(frozen=True)
class Penalties:
    """What D's loss is regularized with; 0: not.

    Attributes:
        drift: weight of the squared logits of real images (Karras et al. 2018, appendix A.1).
        r1_gamma, r2_gamma: of the squared gradient norms at real and at generated images.
        gamma_scale: images seen -> what both gammas are multiplied with.
        gradient_penalty: of WGAN-GP's penalty.
        interval: every how many D steps they are applied, that many times stronger (Karras et al. 2020, "Analyzing and
            improving the image quality of StyleGAN", section 3.1: lazy regularization).
        clip_weights: the largest size of a weight of D after its step.
    """

    drift: float
    r1_gamma: float
    r2_gamma: float
    gamma_scale: Callable[[int], float]
    gradient_penalty: float
    interval: int
    clip_weights: float


class Alternation:
    """`n_critic` steps of D, then one of G, on batches that the processes share.

    Args:
        state: what is trained.
        dist: this process's place among all.
        loss: the game's two sides.
        preprocess: uint8 images to floats.
        augment: those and generated images to what D sees.
        class_probs: probabilities of the labels that G is asked for, (num_classes,); None if it takes no label.
        stages, last_stage: images seen -> stage of growth, with its global batch; and the largest of them.
        micro_batch_size: each process runs its share of the global batch in pieces of at most this size; 0: whole.
        seed: key of the latents and labels.
        schedule_G, schedule_D: images seen -> settings of the optimizer.
        penalties: of D.
        label_smoothing, d_half: see `gan_dist.schema.Loss`.
        skip_nonfinite: take no step with a gradient that is not finite.
    """

    def __init__(
        self,
        state: State,
        dist: Distributed,
        stats: RunningMeans,
        loss: Loss,
        preprocess: Preprocess,
        augment: Augment,
        class_probs: Tensor | None,
        *,
        stages: Callable[[int], Stage],
        last_stage: int,
        micro_batch_size: int,
        n_critic: int,
        seed: int,
        schedule_G: Callable[[int], dict[str, Any]],
        schedule_D: Callable[[int], dict[str, Any]],
        penalties: Penalties,
        label_smoothing: float,
        d_half: bool,
        skip_nonfinite: bool,
    ) -> None:
        self.state, self.dist, self.stats = state, dist, stats
        self.loss, self.preprocess, self.augment, self.class_probs = loss, preprocess, augment, class_probs
        self.stages, self.last_stage = stages, last_stage
        self.n_critic, self.seed = n_critic, seed
        self.schedule_G, self.schedule_D = schedule_G, schedule_D
        self.penalties, self.d_half = penalties, d_half
        self.smoothing = (label_smoothing,) if loss.has_target else ()
        # Where a real and a generated image are compared or mixed, they are of one class.
        self.same_labels = loss.paired or penalties.gradient_penalty > 0
        self.skip_nonfinite = skip_nonfinite
        self.separable = not any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in state.D.modules())
        self.micro_batch_size = micro_batch_size
        self.latents = rng.Latents(state.G.z_dim, like=next(state.G.parameters()))  # type: ignore[arg-type]
        self.G: nn.Module
        self.D: nn.Module
        self.stage: int | None = None  # that these, the wrapped networks, are in
        self.enter_stage()
        self.opt_G = dist.prepare_optimizer(state.opt_G, state.scalers.get("G"))
        self.opt_D = dist.prepare_optimizer(state.opt_D, state.scalers.get("D"))

    def __call__(self, batches: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """One iteration; returns the norms of D's (the last) and of G's gradient."""
        for _ in range(self.n_critic):
            images, labels = next(batches)
            norm_D = self.d_step(images, labels)
        return norm_D, self.g_step(images, labels)

    def enter_stage(self) -> Stage:
        """Take up the stage of growth that the run is in; only what is trained there is wrapped."""
        stage = self.stages(self.state.nimg)
        self.batch_size = stage.batch_size
        for network in (self.state.G, self.state.D, self.state.G_ema):
            if isinstance(network, Growing):
                network.stage = stage.number
        self._fade(stage)
        if stage.number != self.stage:
            if self.stage is not None:
                self.dist.release(self.G)
                self.dist.release(self.D)
            self.G, self.D = self._wrap(self.state.G), self._wrap(self.state.D)
            self.stage = stage.number
        return stage

    def _wrap(self, module: nn.Module) -> nn.Module:
        """Wrapped, a module's gradients are averaged over processes. The state's own modules have none of that."""
        if isinstance(module, Growing):
            module.requires_grad_(True)
            for parameter in module.unused():
                parameter.requires_grad_(False)
        return self.dist.prepare_model(module)

    def _fade(self, stage: Stage) -> None:
        """Blend networks and real images of this stage with those of the one before."""
        self.preprocess.alpha = stage.alpha
        for network in (self.state.G, self.state.D, self.state.G_ema):
            if isinstance(network, Growing):
                network.alpha.fill_(stage.alpha)

    def reseed(self, seed: int) -> None:
        """Draw other latents, labels, flips and augmentations from now on."""
        self.seed = self.preprocess.seed = self.augment.seed = seed

    def d_step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Improve D on a batch of real images and as many generated ones; returns the norm of its gradient.

        Args:
            images, labels: this process's share of the global batch, uint8 (N, C, H, W) and int64 (N,).
        """
        state = self.state
        self.D.requires_grad_(True)
        state.opt_D.zero_grad()
        _set(state.opt_D, self.schedule_D(state.nimg))
        self._fade(self.stages(state.nimg))
        iterate_spectral_norms(state.D)
        r1, r2 = self.penalties.r1_gamma > 0, self.penalties.r2_gamma > 0
        penalise = (state.nimg // self.batch_size) % self.penalties.interval == 0
        twice = penalise and (r1 or r2)  # D's logits are differentiated twice
        one_pass = self.separable and not (twice and r1 != r2)  # the side without a penalty would pay for it too

        micro_batches = list(self._micro_batches())
        for first, part in micro_batches:
            x_real, y_real = self._real_images(images[part], first), self._real_labels(labels[part])
            y = y_real if self.same_labels else self._labels(Purpose.D_LABEL, first, len(x_real))
            z = self.latents(self.seed, Purpose.D_LATENT, first, len(x_real))
            with torch.no_grad():
                x_fake = self.augment(state.G(z, y), Purpose.AUGMENT_D_FAKE, first)
            x_real.requires_grad_(penalise and r1)
            x_fake.requires_grad_(penalise and r2)
            both: list[Judged] = [(x_real, y_real), (x_fake, y)]
            last = part is micro_batches[-1][1]
            with self.dist.micro_batch(self.D, last), self.dist.twice_differentiable(self.D, twice):
                real, fake = self._logits(both, one_pass)
                loss = self.loss.D(real, fake, *self.smoothing) * (0.5 if self.d_half else 1.0)
                self.stats.add("loss_D", loss.mean())
                self.stats.add("D_real", real.mean())
                self.stats.add("D_fake", fake.mean())
                if self.loss.critic:
                    self.stats.add("distance", (real - fake).mean())
                if self.penalties.drift:
                    loss = loss + self.penalties.drift * real.square()
                if penalise:
                    penalty = self._penalty(first, both, torch.cat([real, fake]))
                    loss = loss + self.penalties.interval * penalty
                self.dist.backward(loss.mean() / len(micro_batches), self.opt_D)
        norm = self._optimise("D", state.D, self.opt_D)
        if self.penalties.clip_weights:
            clip_weights(state.D.parameters(), self.penalties.clip_weights)
        state.nimg += self.batch_size
        return norm

    def g_step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Improve G against D, which is frozen and outside its wrapper: no gradient of it is computed or sent.

        The arguments are D's last batch: what paired losses compare with.
        """
        state = self.state
        self.D.requires_grad_(False)
        state.opt_G.zero_grad()
        _set(state.opt_G, self.schedule_G(state.nimg))

        micro_batches = list(self._micro_batches())
        for first, part in micro_batches:
            count = part.stop - part.start
            y = self._real_labels(labels[part]) if self.same_labels else self._labels(Purpose.G_LABEL, first, count)
            z = self.latents(self.seed, Purpose.G_LATENT, first, count)
            with self.dist.micro_batch(self.G, last=part is micro_batches[-1][1]):
                fake = state.D(self.augment(self.G(z, y), Purpose.AUGMENT_G_FAKE, first), y)
                if self.loss.paired:
                    real = state.D(self._real_images(images[part], first - self.batch_size), y)
                    loss = self.loss.G(fake, real)
                else:
                    loss = self.loss.G(fake)
                self.stats.add("loss_G", loss.mean())
                self.dist.backward(loss.mean() / len(micro_batches), self.opt_G)
        return self._optimise("G", state.G, self.opt_G)

    def _logits(self, batches: Sequence[Judged], one_pass: bool) -> Sequence[Tensor]:
        """D's logits of batches of one size, (N,) each."""
        if not one_pass:
            return [self.D(x, y) for x, y in batches]
        xs, ys = zip(*batches)
        return self.D(torch.cat(xs), None if ys[0] is None else torch.cat(ys)).split(len(xs[0]))

    def _penalty(self, first: int, both: Sequence[Judged], logits: Tensor) -> Tensor:
        """The sum of D's penalties for each pair of a real and a generated image: (N,); `logits` (2N,) are of both."""
        (x_real, y), (x_fake, _) = both
        total = torch.zeros_like(logits[: len(x_real)], dtype=x_real.dtype)
        gammas = {"r1": self.penalties.r1_gamma, "r2": self.penalties.r2_gamma}
        sides = [(name, gamma, pair) for (name, gamma), pair in zip(gammas.items(), both) if gamma]
        if sides:
            norms = squared_gradient_norms(logits, *(x for _, _, (x, _) in sides))
            for (name, gamma, _), norm in zip(sides, norms):
                self.stats.add(name, norm.mean())
                total = total + 0.5 * gamma * self.penalties.gamma_scale(self.state.nimg) * norm
        if self.penalties.gradient_penalty:
            drawn = torch.from_numpy(rng.uniform(self.seed, Purpose.INTERPOLATE, first, len(x_real), 1))
            u = rng.to_device(drawn.to(x_real.dtype), x_real.device)
            x = interpolate(x_real.detach(), x_fake.detach(), u).requires_grad_()
            with self.dist.twice_differentiable(self.D):
                penalty = lipschitz_penalty(self.D(x, y), x)
            self.stats.add("gradient_penalty", penalty.mean())
            total = total + self.penalties.gradient_penalty * penalty
        return total

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
        size = self.micro_batch_size or len(share)
        for start in range(0, len(share), size):
            yield self.state.nimg + share[start], slice(start, min(start + size, len(share)))

    def _labels(self, purpose: Purpose, first: int, count: int) -> Tensor | None:
        """Fresh labels (count,) on the device, if G takes them."""
        if self.class_probs is None:
            return None
        drawn = rng.labels(self.seed, purpose, first, count, self.class_probs)
        return rng.to_device(drawn, next(self.state.G.parameters()).device)

    def _real_images(self, images: Tensor, first: int) -> Tensor:
        """What D sees of real images (N, C, H, W), uint8, the ones from number `first` of the run on."""
        return self.augment(self.preprocess(images, first), Purpose.AUGMENT_REAL, first)

    def _real_labels(self, labels: Tensor) -> Tensor | None:
        """The labels of real images, if G takes them."""
        return labels if self.class_probs is not None else None


def _set(optimizer: torch.optim.Optimizer, settings: dict[str, Any]) -> None:
    for group in optimizer.param_groups:
        group.update(settings)
