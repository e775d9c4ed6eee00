"""One training iteration: the alternating optimisation of D and G (Goodfellow et al. 2014, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gan_dist.checkpoint.state import State
from gan_dist.engine.draws import Drawn, Draws
from gan_dist.engine.ema import Average, MovingAverage
from gan_dist.engine.graphs import Graphs
from gan_dist.engine.growth import Growth, MicroBatch
from gan_dist.engine.stats import Figures, mean_of
from gan_dist.engine.update import Update
from gan_dist.errors import UserError
from gan_dist.game.game import Game
from gan_dist.game.regularizers import (
    clip_weights,
    gradient_penalty,
    interpolate,
    iterate_spectral_norms,
    squared_gradient_norms,
)
from gan_dist.parallel.wrapped import Wrapped

Pair = tuple[Tensor, Tensor | None]  # images x and labels y for D; no labels if D is unconditional


class Alternation:
    """One iteration: `game.n_critic` steps of D, then one step of G, then the update of G_ema.

    `d_step` and `g_step` compute on the host what follows from the number of images seen. Their work on the device is
    done by the functions `_gradient_D` to `_finish_G`, which may be captured as CUDA graphs. So these functions read
    what changes from step to step from `draws.scalars`.

    Args:
        state: the networks without wrappers, and the number of images that D has seen.
        wrapped: the same networks in DistributedDataParallel, which averages gradients over all processes.
        growth: the current stage of progressive growing, which says the global batch and the micro-batches.
        game: the loss and the penalties.
        draws: draws latents and labels, and prepares images for D.
        updates: the `Update` of "G" and of "D".
        average: how fast G_ema follows G.
        graphs: captures the work on the device and replays it; None to run it as it is.

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
        graphs: Graphs | None,
    ) -> None:
        self.state, self.wrapped, self.growth = state, wrapped, growth
        self.game, self.draws, self.average, self.graphs = game, draws, average, graphs
        self.update_G, self.update_D, self.stats = updates["G"], updates["D"], updates["D"].stats
        self.moving_average = MovingAverage(state.G_ema, state.G)
        self._began = state.nimg  # number of images seen before the iteration
        # In one pass, batch normalization would compute its statistics over real and generated images together.
        self.separable = not any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in state.D.modules())

    def __call__(self, batches: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Make one iteration; returns the gradient norms of the last D step and of the G step, scalars on the device.

        Args:
            batches: this process's shares of the global batches.
        """
        self._began = self.state.nimg
        for _ in range(self.game.n_critic):
            norm_D, x_real, y_real = self.d_step(*next(batches))
        return norm_D, self.g_step(x_real, y_real)

    def d_step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Train D on real images and as many generated images.

        Args:
            images: this process's share of the global batch, as stored, usually uint8 (N, C, H, W).
            labels: their labels, int64 (N,).

        Returns:
            The norm of D's gradient, and the real images as D saw them with their labels.
        """
        penalise = (self.state.nimg // self.growth.batch_size) % self.game.penalties.interval == 0
        self._begin(self.update_D)
        name = "D's step" + " with penalties" * (penalise and self.game.penalties.interval > 1)
        gradient = partial(self._gradient_D, penalise)
        result = self._run(name, self.update_D, gradient, self._finish_D, images, labels)
        self.state.nimg += self.growth.batch_size
        return result

    def g_step(self, x_real: Tensor | None, y_real: Tensor | None) -> Tensor:
        """Train G, then let G_ema follow it; returns the norm of G's gradient.

        Args:
            x_real, y_real: what the last `d_step` returned. Only a paired loss uses the images: it compares each
                generated image with a real one.
        """
        self._begin(self.update_G)
        x_real, y_real = x_real if self.game.loss.paired else None, y_real if self.game.same_labels else None
        return self._run("G's step", self.update_G, self._gradient_G, self._finish_G, x_real, y_real)

    def _begin(self, update: Update) -> None:
        """Compute what a step needs from the number of images seen, and write it to where the step reads it."""
        nimg, own = self.state.nimg, self.growth.own
        beta = self.average.beta(nimg - self._began, self._began)
        row, scale = self.draws.begin(nimg + own.start, len(own)), self.game.penalties.gamma_scale(nimg)
        self.draws.scalars.write({"row": row, "gamma_scale": scale, "average": 1 - beta, **update.begin(nimg)})

    def _run(
        self, name: str, update: Update, gradient: Callable[..., Any], finish: Callable[..., Any], *inputs: Any
    ) -> Any:
        """Run the work of a step: `gradient(*inputs)`, and `finish` with the result. One graph has both if it can."""
        if self.graphs is None:
            return finish(*gradient(*inputs))
        if update.fits_graph:
            return self.graphs(name, lambda *inputs: finish(*gradient(*inputs)), *inputs)
        return finish(*self.graphs(name, gradient, *inputs))

    def _gradient_D(self, penalise: bool, images: Tensor, labels: Tensor) -> tuple[Figures, Tensor, Tensor | None]:
        """Compute D's gradient; returns figures for the log, and the real images and labels as D saw them."""
        game, draws, figures = self.game, self.draws, []
        self.update_D.require_gradients(True)
        self.update_D.clear()
        iterate_spectral_norms(self.state.D)
        x_real, y_real = draws.real_images(images), draws.labels_of(labels)
        mixes = penalise and game.penalties.pairs
        for micro in self.growth.micro_batches():
            real = x_real[micro.part], None if y_real is None else y_real[micro.part]
            drawn = draws.for_D(micro.part, real[1] if game.same_labels else None, mixes)
            loss = partial(self._loss_D, penalise)
            inputs = (*real, drawn, draws.scalars["gamma_scale"])
            figures.append(self._backward(self.update_D, micro, (penalise, self.growth.stage.number), loss, inputs))
        return mean_of(figures), x_real, y_real

    def _finish_D(
        self, figures: Figures, x_real: Tensor, y_real: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Step D's optimizer; returns the norm of D's gradient, and the real images and labels."""
        norm = self.update_D.step(figures)
        if self.game.penalties.clip_weights:
            clip_weights(self.update_D.parameters, self.game.penalties.clip_weights)
        return norm, x_real, y_real

    def _gradient_G(self, x_real: Tensor | None, y_real: Tensor | None) -> tuple[Figures]:
        """Compute G's gradient; returns figures for the log.

        D's weights are frozen, and D is called without its wrapper, so its gradients are neither computed nor sent.
        """
        figures = []
        self.update_D.require_gradients(False)
        self.update_G.clear()
        for micro in self.growth.micro_batches():
            x, y = (None if of_batch is None else of_batch[micro.part] for of_batch in (x_real, y_real))
            inputs = x, self.draws.for_G(micro.part, y)
            figures.append(self._backward(self.update_G, micro, self.growth.stage.number, self._loss_G, inputs))
        return (mean_of(figures),)

    def _finish_G(self, figures: Figures) -> Tensor:
        """Step G's optimizer, and let G_ema follow G; returns the norm of G's gradient."""
        norm = self.update_G.step(figures)
        self.moving_average.follow(self.draws.scalars["average"])
        return norm

    def _backward(
        self, update: Update, micro: MicroBatch, key: Hashable, loss: Callable[..., Any], inputs: tuple[Any, ...]
    ) -> Figures:
        """Compute a loss of a micro-batch, and add its gradient to those of the earlier ones; returns its figures.

        `key` and `inputs` are all that the loss depends on and that can change during the run.
        """
        if update.compiled:
            figures = update.compiled.add(loss, key, inputs, update.weight(micro.count))
            if figures is not None:
                if micro.last:
                    update.compiled.hand_over()
                return figures
            self.update_D.compiled = self.update_G.compiled = None
        with getattr(self.wrapped, update.name).micro_batch(micro.last):
            value, figures = loss(*inputs)
            update.backward(value / micro.count)
        return figures

    def _loss_D(
        self, penalise: bool, x_real: Tensor, y_real: Tensor | None, drawn: Drawn, gamma_scale: Tensor
    ) -> tuple[Tensor, Figures]:
        """Compute D's mean loss over a micro-batch, with its penalties if they are due, and figures for the log."""
        penalties = self.game.penalties
        r1, r2 = penalise and penalties.r1_gamma > 0, penalise and penalties.r2_gamma > 0
        with torch.no_grad():
            x_fake = self.draws.augmented(self.state.G(drawn.z, drawn.y), drawn.bits)
        x_real, x_fake = x_real.detach().requires_grad_(r1), x_fake.detach().requires_grad_(r2)
        with self.wrapped.D.twice_differentiable(r1 or r2):
            # If only one of R1 and R2 is applied, a joint pass would compute second derivatives of both halves.
            real, fake = self._logits((x_real, y_real), (x_fake, drawn.y), together=self.separable and r1 == r2)
            loss, figures = self._adversarial_D(real, fake)
            if penalise:
                logits, u = torch.cat([real, fake]), drawn.u
                penalty, more = self._penalty((x_real, y_real), x_fake, logits, u, gamma_scale)
                loss, figures = loss + penalties.interval * penalty, figures | more
        return loss.mean(), figures

    def _loss_G(self, x_real: Tensor | None, drawn: Drawn) -> tuple[Tensor, Figures]:
        """Compute G's mean loss over a micro-batch, and figures for the log."""
        loss, y = self.game.loss, drawn.y
        fake = self.state.D(self.draws.augmented(self.wrapped.G(drawn.z, y), drawn.bits), y)
        mean = (loss.G(fake) if x_real is None else loss.G(fake, self.state.D(x_real, y))).mean()
        return mean, {"loss_G": mean.detach()}

    def _logits(self, real: Pair, fake: Pair, together: bool) -> Sequence[Tensor]:
        """Compute D's logits of real and of generated images, (N,) each, together in one pass or in two passes."""
        if not together:
            return self.wrapped.D(*real), self.wrapped.D(*fake)
        (x_real, y_real), (x_fake, y) = real, fake
        labels = None if y_real is None or y is None else torch.cat([y_real, y])
        return self.wrapped.D(torch.cat([x_real, x_fake]), labels).split(len(x_real))

    def _adversarial_D(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Figures]:
        """Compute D's loss of each sample, (N,), with the drift penalty but no gradient penalty, and its figures."""
        game = self.game
        smoothing = (game.label_smoothing,) if game.loss.has_target else ()
        loss = game.loss.D(real, fake, *smoothing) * (0.5 if game.d_half else 1.0)
        figures = {"loss_D": loss, "D_real": real, "D_fake": fake}
        if game.loss.critic:
            figures["distance"] = real - fake
        figures = {name: values.detach().mean() for name, values in figures.items()}
        return loss + game.penalties.drift * real.square() if game.penalties.drift else loss, figures

    def _penalty(
        self, real: Pair, x_fake: Tensor, logits: Tensor, u: Tensor | None, gamma_scale: Tensor
    ) -> tuple[Tensor, Figures]:
        """Compute the sum of the penalties (R1, R2, WGAN-GP, users') for each pair of a real and a fake image: (N,).

        Args:
            real: real images and their labels.
            x_fake: generated images (N, C, H, W).
            logits: D's logits of the real and then of the generated images, (2N,).
            u: uniform random numbers in [0, 1), (N,), by which WGAN-GP's penalty mixes the images; None if no penalty
                needs them.
            gamma_scale: the present factor of the gammas, a tensor without dimensions.

        Returns:
            The penalty, and the mean of each penalty for the log.
        """
        (x_real, y), penalties, figures = real, self.game.penalties, {}
        total = torch.zeros_like(logits[: len(x_real)], dtype=x_real.dtype)
        sides = {"r1": (penalties.r1_gamma, x_real), "r2": (penalties.r2_gamma, x_fake)}
        sides = {name: side for name, side in sides.items() if side[0]}
        norms = squared_gradient_norms(logits, *(x for _, x in sides.values())) if sides else []
        for (name, (gamma, _)), norm in zip(sides.items(), norms):
            figures[name] = norm.detach().mean()
            total = total + 0.5 * gamma * gamma_scale * norm
        if penalties.gradient_penalty and u is not None:
            x = interpolate(x_real.detach(), x_fake.detach(), u).requires_grad_()
            with self.wrapped.D.twice_differentiable():
                penalty = gradient_penalty(self.wrapped.D(x, y), x)
            figures["gradient_penalty"] = penalty.detach().mean()
            total = total + penalties.gradient_penalty * penalty
        for name, call in penalties.others.items():
            with self.wrapped.D.twice_differentiable():
                penalty = call(self.wrapped.D, x_real.detach(), x_fake.detach(), y, u)
            if penalty.shape != total.shape:
                found = tuple(penalty.shape)
                raise UserError(f"loss.penalties: {name} must return one value per image, (N,), and returned {found}")
            figures[name] = penalty.detach().mean()
            total = total + penalty
        return total, figures
