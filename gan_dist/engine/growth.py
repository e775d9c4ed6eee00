"""Progressive growing (Karras et al. 2018): the image size grows in stages. Other runs have a single stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gan_dist.checkpoint.state import State
from gan_dist.engine.draws import Draws
from gan_dist.models import Growing
from gan_dist.parallel.wrapped import Wrapped


@dataclass(frozen=True)
class Stage:
    """The stage of progressive growing at one moment of a run.

    Attributes:
        number: 0 for the smallest images; see `gan_dist.models.Growing`.
        alpha: how far the newest layers are faded in, in [0, 1].
        batch_size: number of images in a global batch.
    """

    number: int
    alpha: float
    batch_size: int


@dataclass(frozen=True)
class MicroBatch:
    """A part of this process's batch, which it computes at once.

    Attributes:
        part: which images of the batch of this process.
        count: number of micro-batches in this batch.
        last: this is the last of them.
    """

    part: slice
    count: int
    last: bool


def grow(stable_nimg: float, fade_nimg: float, batch_sizes: list[int]) -> Callable[[int], Stage]:
    """Return a function from nimg, the number of images seen, to the stage of a run that grows.

    Each stage except the first begins with a fade-in (Karras et al. 2018, figure 2). The last stage has no end.

    Args:
        stable_nimg: number of images for which a stage is trained after its fade-in.
        fade_nimg: number of images of a fade-in.
        batch_sizes: global batch of each stage, smallest images first.
    """
    last = len(batch_sizes) - 1

    def stage(nimg: int) -> Stage:
        number = min(int((nimg + fade_nimg) // (fade_nimg + stable_nimg)), last)
        since = nimg + fade_nimg - number * (fade_nimg + stable_nimg)
        alpha = min(since / fade_nimg, 1.0) if fade_nimg and number else 1.0
        return Stage(number, alpha, batch_sizes[number])

    return stage


def stay(number: int, batch_size: int) -> Callable[[int], Stage]:
    """Return a function from nimg to the stage of a run that does not grow: always the same stage, faded in."""
    return lambda _: Stage(number, 1.0, batch_size)


class Growth:
    """Keeps the current stage, and changes everything that depends on it.

    These are the layers that run and are trained, alpha of the networks and of the real images, the global batch and
    the micro-batches.

    Args:
        state: the state of the run.
        wrapped: both networks in DistributedDataParallel.
        draws: blends the real images as the stage requires.
        stage_at: a function from nimg to the stage, made by `grow` or `stay`.
        share: a function from the size of a global batch to the range of images that this process computes.
        micro_batch_size: largest number of images that this process computes at once; 0 for its whole per-process
            batch.

    Attributes:
        stage: the current stage.
    """

    def __init__(
        self,
        state: State,
        wrapped: Wrapped,
        draws: Draws,
        stage_at: Callable[[int], Stage],
        share: Callable[[int], range],
        micro_batch_size: int,
    ) -> None:
        self.state, self.wrapped, self.draws = state, wrapped, draws
        self.stage_at, self.share, self.micro_batch_size = stage_at, share, micro_batch_size
        self.stage = self.stage_at(state.nimg)
        self._apply()
        self._begin()

    @property
    def batch_size(self) -> int:
        """Number of images in the current global batch."""
        return self.stage.batch_size

    def advance(self) -> bool:
        """Move to the stage that belongs to `state.nimg`; returns True if its number differs from the one before."""
        before, self.stage = self.stage, self.stage_at(self.state.nimg)
        self._apply()
        if self.stage.number == before.number:
            return False
        self._begin()
        return True

    @property
    def own(self) -> range:
        """The places, in the current global batch, of the images that this process computes."""
        return self.share(self.batch_size)

    def micro_batches(self) -> list[MicroBatch]:
        """Return the micro-batches of this process's batch."""
        count = len(self.own)
        starts = range(0, count, self.micro_batch_size or count)
        ends = [*starts[1:], count]
        return [MicroBatch(slice(a, b), len(starts), b == count) for a, b in zip(starts, ends)]

    def _apply(self) -> None:
        """Set alpha and the stage in `draws` and in the networks."""
        self.draws.alpha = self.stage.alpha
        for network in (self.state.G, self.state.D, self.state.G_ema):
            if isinstance(network, Growing):
                network.stage = self.stage.number
                network.alpha.fill_(self.stage.alpha)

    def _begin(self) -> None:
        """Train only the parameters that the stage uses.

        The networks are wrapped again, because DistributedDataParallel waits for the gradients of all parameters that
        required one when it was made.
        """
        for network in (self.state.G, self.state.D):
            if isinstance(network, Growing):
                network.requires_grad_(True)
                for parameter in network.unused():
                    parameter.requires_grad_(False)
        self.wrapped.G.renew()
        self.wrapped.D.renew()
