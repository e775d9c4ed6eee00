"""The stream of a run's batches, which goes on with other images where a stage of growth or a retry begins."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator

from torch import Tensor

from gan_dist.engine.growth import Growth, Stage

Stream = Generator[tuple[Tensor, Tensor]]


class Batches(Iterator[tuple[Tensor, Tensor]]):
    """This process's shares of the global batches, from image number `state.nimg` of the run on, without end.

    Args:
        growth: says which stage the run is in.
        open_stream: (stage, number of the first image, seed) -> batches of that stage's image size.
    """

    def __init__(self, growth: Growth, open_stream: Callable[[Stage, int, int], Stream]) -> None:
        self.growth, self.open_stream = growth, open_stream
        self._stream: Stream | None = None

    def __next__(self) -> tuple[Tensor, Tensor]:
        """Images as they are stored (N, C, H, W) and labels int64 (N,), on the device."""
        if self.growth.advance():
            self.close()
        if self._stream is None:
            self._stream = self.open_stream(self.growth.stage, self.growth.state.nimg, self.growth.draws.seed)
        return next(self._stream)

    def rewind(self, nimg: int) -> None:
        """The run went back: go on from where it is now."""
        self.close()

    def close(self) -> None:
        """Stop the processes that load images, if there are any."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
