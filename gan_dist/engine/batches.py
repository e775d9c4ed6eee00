"""The batches of a run. The stream is opened again when a stage of progressive growing begins or the run goes back."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator

from torch import Tensor

from gan_dist.engine.growth import Growth, Stage

Stream = Generator[tuple[Tensor, Tensor]]


class Batches(Iterator[tuple[Tensor, Tensor]]):
    """An endless iterator over this process's shares of the global batches. It starts at image `state.nimg` of the run.

    Args:
        growth: the current stage of progressive growing, its batch size and its image size.
        open_stream: called as `open_stream(stage, number of the first image, seed)`; returns the batches of that stage.
    """

    def __init__(self, growth: Growth, open_stream: Callable[[Stage, int, int], Stream]) -> None:
        self.growth, self.open_stream = growth, open_stream
        self._stream: Stream | None = None

    def __next__(self) -> tuple[Tensor, Tensor]:
        """Return a batch on the device: images as they are stored, usually uint8 (N, C, H, W), and labels int64 (N,).

        With progressive growing this function also moves the run to its next stage when that is due.
        """
        if self.growth.advance():
            self.close()
        if self._stream is None:
            self._stream = self.open_stream(self.growth.stage, self.growth.state.nimg, self.growth.draws.seed)
        return next(self._stream)

    def rewind(self, nimg: int) -> None:
        """The run has gone back: close the stream. The next batch opens it where the run is then, with its new seed."""
        self.close()

    def close(self) -> None:
        """Stop the DataLoader's workers, if there are any."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
