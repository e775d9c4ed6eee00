"""Progressive growing (Karras et al. 2018): which stage a run is in. Networks that do not grow have one stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from gan_dist.checkpoint.state import State
from gan_dist.engine.draws import Draws
from gan_dist.models import Growing
from gan_dist.parallel.wrapped import Wrapped


@dataclass(frozen=True)
class Stage:
    """What is trained at one moment.

    Attributes:
        number: 0 for the smallest size; see `gan_dist.models.Growing`.
        alpha: how far the newest layers are faded in, from 0 to 1.
        batch_size: images in a global batch.
    """

    number: int
    alpha: float
    batch_size: int


def grow(stable_nimg: float, fade_nimg: float, batch_sizes: list[int]) -> Callable[[int], Stage]:
    """Images seen -> stage, with one global batch size for each stage, smallest image first.

    Each stage but the first begins with a fade (Karras et al. 2018, figure 2), and is then trained on as it is.
    """
    last = len(batch_sizes) - 1

    def stage(nimg: int) -> Stage:
        number = min(int((nimg + fade_nimg) // (fade_nimg + stable_nimg)), last)
        since = nimg + fade_nimg - number * (fade_nimg + stable_nimg)
        alpha = min(since / fade_nimg, 1.0) if fade_nimg and number else 1.0
        return Stage(number, alpha, batch_sizes[number])

    return stage


def stay(number: int, batch_size: int) -> Callable[[int], Stage]:
    """Images seen -> always the same stage, faded in: for runs that do not grow."""
    return lambda _: Stage(number, 1.0, batch_size)


class Growth:
    """The one owner of the stage: all that depends on it is changed here.

    That are the layers that run and are trained, how far the newest of them are faded in, how real images are faded,
    and the global batch with the pieces that this process computes it in.

    Args:
        stage_at: images seen -> stage, made by `grow` or `stay`.
        share: the length of a global batch -> the range of it that is this process's.
        micro_batch_size: this process computes its share in pieces of at most this size; 0: in one piece.

    Attributes:
        stage: the current one.
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
        """Images in the current global batch."""
        return self.stage.batch_size

    def advance(self) -> bool:
        """Take up the stage that belongs to `state.nimg`; returns True if it is another one than before."""
        before, self.stage = self.stage, self.stage_at(self.state.nimg)
        self._apply()
        if self.stage.number == before.number:
            return False
        self._begin()
        return True

    def micro_batches(self, nimg: int) -> Iterator[tuple[int, slice]]:
        """The pieces of this process's share of the batch that begins with image number `nimg` of the run.

        Yields (number of the piece's first image in the run, slice of the share).
        """
        share = self.share(self.batch_size)
        size = self.micro_batch_size or len(share)
        for start in range(0, len(share), size):
            yield nimg + share[start], slice(start, min(start + size, len(share)))

    def _apply(self) -> None:
        """Tell the stage to all that depends on it."""
        self.draws.alpha = self.stage.alpha
        for network in (self.state.G, self.state.D, self.state.G_ema):
            if isinstance(network, Growing):
                network.stage = self.stage.number
                network.alpha.fill_(self.stage.alpha)

    def _begin(self) -> None:
        """Train the parameters of this stage alone, and wrap these alone, so that no other gradient is waited for."""
        for network in (self.state.G, self.state.D):
            if isinstance(network, Growing):
                network.requires_grad_(True)
                for parameter in network.unused():
                    parameter.requires_grad_(False)
        self.wrapped.G.renew()
        self.wrapped.D.renew()
