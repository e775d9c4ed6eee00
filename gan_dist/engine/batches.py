"""The batches of a run, fetched so early that all processes know in time if one of them cannot get its batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator

from torch import Tensor

from gan_dist.engine.growth import Growth, Stage
from gan_dist.errors import Interrupted
from gan_dist.parallel.stop import StopAgreement

Batch = tuple[Tensor, Tensor]
Stream = Generator[Batch]


class Batches(Iterator[Batch]):
    """An endless iterator over this process's shares of the global batches. It starts at image `state.nimg` of the run.

    The stream of batches is opened again when a stage of progressive growing begins or the run goes back.

    Args:
        growth: the current stage of progressive growing, its batch size and its image size.
        open_stream: called as `open_stream(stage, number of the first image, seed)`; returns the batches of that stage.
        per_iteration: number of batches that an iteration uses, which is the number of D steps.

    Attributes:
        error: why no batch can be had any more; None as long as there are batches, and after a stop signal.
    """

    def __init__(self, growth: Growth, open_stream: Callable[[Stage, int, int], Stream], per_iteration: int) -> None:
        self.growth, self.open_stream, self.per_iteration = growth, open_stream, per_iteration
        self.error: Exception | None = None
        self._stream: Stream | None = None
        self._stage = 0  # number of the stage of growth that the stream belongs to
        self._fetched: deque[Batch] = deque()  # batches that no iteration has used yet
        self._first = 0  # number, in the run, of the first image of the next batch to fetch
        self._asked = 0  # number of iterations that are not made yet, but about which the processes have been asked
        self._no_more = False

    def ready(self, stop: StopAgreement) -> bool:
        """Tell if an iteration can be made: all processes have its batches, and none has received a stop signal.

        All processes call this function before each iteration and get the same answer. They tell each other some
        iterations ahead whether they have their batches. So they all end before the same iteration, in which no weight
        has changed yet.
        """
        while True:
            if stop(unable=not self._fetch_iteration()):
                return False
            self._asked += 1
            if self._asked > stop.lag:
                self._asked -= 1
                return True

    def __next__(self) -> Batch:
        """Return a batch on the device: images as they are stored, usually uint8 (N, C, H, W), and labels int64 (N,).

        With progressive growing this function also moves the run to its next stage when that is due.
        """
        self.growth.advance()
        if not self._fetched:
            self._fetch(self._open())
        return self._fetched.popleft()

    def rewind(self, nimg: int) -> None:
        """The run has gone back: forget all batches. The stream is opened where the run is then, with its new seed."""
        self.close()

    def close(self) -> None:
        """Stop the DataLoader's workers, if there are any."""
        if self._stream is not None:
            self._stream.close()
        self._stream, self._asked = None, 0
        self._fetched.clear()

    def _fetch_iteration(self) -> bool:
        """Fetch the batches of one more iteration; returns False if this process cannot get them."""
        for _ in range(0 if self._no_more else self.per_iteration):
            stream = self._open()  # outside of `try`, because the processes may open it together
            try:
                self._fetch(stream)
            except Exception as error:
                self._no_more = True
                self.error = None if isinstance(error, Interrupted) else error
                break
        return not self._no_more

    def _fetch(self, stream: Stream) -> None:
        self._fetched.append(next(stream))
        self._first += self.growth.stage_at(self._first).batch_size

    def _open(self) -> Stream:
        """Return the stream of the next batch to fetch."""
        if self._stream is None:
            self._first = self.growth.state.nimg
        stage = self.growth.stage_at(self._first)
        if self._stream is None or stage.number != self._stage:
            if self._stream is not None:
                self._stream.close()
            self._stream = self.open_stream(stage, self._first, self.growth.draws.seed)
            self._stage = stage.number
        return self._stream
