"""What can be done from Python: train, open a run, measure, and load a generator."""

from __future__ import annotations

import functools
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from PIL import Image
from torch import nn

from gan_dist import evaluation, run
from gan_dist.advice import advise
from gan_dist.as_found import as_found
from gan_dist.checkpoint.find import list_checkpoints, nimg_of
from gan_dist.errors import ConfigError, UserError
from gan_dist.parallel import rendezvous
from gan_dist.parallel.signals import StopRequest
from gan_dist.report.tracking import read_metrics
from gan_dist.sampling import sample
from gan_dist.wiring.networks import find_generator, on_device
from gan_dist.wiring.own_config import Asked, own_config
from gan_dist.wiring.resume import is_finished
from gan_dist.wiring.words import Settings, as_words, read_words

T = TypeVar("T")

_work = threading.Lock()  # held by the one training or evaluation of this process
_training: tuple[Asked, StopRequest] | None = None  # the training that runs in this process


class Run(NamedTuple):
    """A run in its directory. Weights, metrics and pictures are read from there whenever they are asked for.

    Attributes:
        directory: the run directory, as an absolute path.
        finished: nothing was left to do when `train` or `open_run` returned this object. False if the training was
            stopped, has failed, or went on elsewhere.
    """

    directory: Path
    finished: bool

    @property
    def G_ema(self) -> nn.Module:
        """The averaged generator of the newest checkpoint, on the CPU; see `gan_dist.load_generator`."""
        return load_generator(self.directory)

    @property
    def kimg(self) -> float:
        """Thousands of real images that D has seen at the newest checkpoint; 0 if there is none yet."""
        checkpoints = list_checkpoints(self.directory)
        return nimg_of(checkpoints[-1]) / 1000 if checkpoints else 0.0

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`, oldest first: each a dict with `kimg` and what was logged there."""
        return list(read_metrics(self.directory / "metrics.jsonl"))

    def show(self) -> Image.Image | None:
        """Show the newest grid of samples in a notebook. Elsewhere it is returned as an image of Pillow.

        Raises:
            UserError: there is no grid yet.
        """
        grids = sorted((self.directory / "samples").glob("grid-*.png"))
        if not grids:
            raise UserError(f"{self.directory}: no samples yet; sample.every_kimg=0 makes none")
        with Image.open(grids[-1]) as image:
            image.load()
        shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
        if not hasattr(shell, "kernel"):  # a program, or IPython in a terminal
            return image
        sys.modules["IPython"].display.display(image)
        return None

    def stop(self) -> bool:
        """Ask the training of this run, in another thread of this process, to save a checkpoint and to end.

        It does so within a few iterations, as after Ctrl-C; this function does not wait for it.

        Returns:
            False if this process does not train this run.
        """
        if _training is None or _directory(_training[0]) != self.directory:
            return False
        _training[1].stop()
        return True


def train(settings: Settings, dataset: Any = None, callbacks: Sequence[Any] = ()) -> Run:
    """Train a run, or go on with one, as `gan-dist train` does.

    It can be called as often as you like in one process, in any thread. Only one training or evaluation at a time can
    run in a process. Under a launcher, such as `accelerate launch` or `notebook_launcher`, all processes call it.

    In the main thread Ctrl-C, SIGTERM, SIGUSR1 and SIGHUP stop the training: it saves a checkpoint, and this function
    returns. Ctrl-C for the second time raises KeyboardInterrupt. In another thread only `Run.stop` does this.

    After it the process is as before: signal handlers, torch's switches and default types, random generators, loggers,
    warning filters, environment variables, and your own Accelerator. What can't be put back:

    - the modules that were imported, and what they do when they are imported: Pillow accepts longer texts in PNG files;
    - CUDA, once it has started, and with it CUBLAS_WORKSPACE_CONFIG in the environment, which CUDA reads only once;
    - parameters of glibc's malloc, which get glibc's own values even if you had set others;
    - idle threads of torch and tqdm, and the resource tracker of multiprocessing if there were data workers;
    - with W&B its service, a process that ends with your program, and its hooks in a notebook;
    - with several processes the connection to the store on which they have met.

    Args:
        settings: what the command line would get: the name of a recipe or the path of a YAML file; or a list of words,
            as `["dcgan_cifar10", "train.kimg=1"]`; or a mapping, as `{"train": {"kimg": 1}}`, over the recipe digits; a
            list may hold mappings too.
        dataset: a data set in place of the one that `data.name` names.
        callbacks: called during the training.

    Returns:
        The run. If something stopped it, its `finished` is False, and the settings `run.dir=… resume=latest` go on.

    Raises:
        UserError: as the command line says it in one line; `ConfigError`, a subclass, for wrong settings.
        KeyboardInterrupt: Ctrl-C for the second time.
    """
    global _training
    if not isinstance(callbacks, list | tuple):
        raise ConfigError(f"callbacks={type(callbacks).__name__}: give a list of callbacks")
    asked = replace(read_words(as_words(settings)), dataset=dataset, callbacks=tuple(callbacks))
    with _alone(), StopRequest() as request:
        _training = asked, request
        try:
            finished = _call(lambda: run.train(asked, request))
        finally:
            _training = None
    return Run(_directory(asked), finished)


def open_run(directory: str | Path) -> Run:
    """Return the run in a directory, which may still be trained, by this or by another program.

    Raises:
        UserError: there is no run.
    """
    path = Path(directory).expanduser().resolve()
    own, checkpoints = own_config(path), list_checkpoints(path)
    if own is None:
        raise UserError(f"{directory}: there is no run in this directory")
    return Run(path, bool(checkpoints) and is_finished(checkpoints[-1], own.config))


def evaluate(
    what: Run | str | Path | nn.Module,
    settings: Settings = (),
    checkpoint: str = "latest",
    n: int | None = None,
    dataset: Any = None,
) -> dict[str, Any]:
    """Measure a generator, as `gan-dist evaluate` does. All processes of a launcher call this function together.

    Args:
        what: a run or its directory; or a generator, which has the attributes `z_dim`, `num_classes` (0 if it takes no
            labels) and `image_shape`, and is called as `load_generator` says.
        settings: for a run, replacements of its settings, as `["metrics.extractor=inception"]`; use `metrics.*`,
            `data.*` or `train.device`. For a generator, which settings its data and metrics have, as for `train`.
        checkpoint: "latest", "best" or a name; for a run only.
        n: number of images to generate. None for 50,000, or `metrics.num_images` if the metrics count modes.
        dataset: the data set, if the run was trained with one from Python.

    Returns:
        The value of each metric by its name, such as `fid_classifier`, and `protocol`; of a run also `checkpoint` and
        `kimg`. The result of a run is added to `evaluations.jsonl` in its directory too.

    Raises:
        UserError: the data, the feature extractor or the checkpoint cannot be read, or do not fit each other.
    """
    words = as_words(settings)
    if isinstance(what, nn.Module):
        G, asked = what, replace(read_words(words), dataset=dataset)

        def measure() -> dict[str, Any]:
            return evaluation.evaluate_module(G, asked, n)
    elif checkpoint == "all":
        raise ConfigError('checkpoint="all": measure one checkpoint at a time')
    else:
        directory = what.directory if isinstance(what, Run) else Path(what)

        def measure() -> dict[str, Any]:
            return evaluation.evaluate(directory, checkpoint, words, n, dataset=dataset)[0]

    with _alone():
        return _call(measure)


def load_generator(run_dir: str | Path, checkpoint: str = "latest", device: str = "cpu") -> nn.Module:
    """Load G_ema, the exponential moving average of the generator, from a checkpoint of a run.

    The returned module is called as `G(z)`, or as `G(z, y)` if the run is conditional. It takes latents
    z (N, G.z_dim) from N(0, 1) and labels y (N,) int64 in 0 … G.num_classes - 1. It returns float images
    (N, *G.image_shape) in [-1, 1]. It is in eval mode, and its weights require no gradient. They are fp32, or fp64 if
    the run's precision is fp64.

    `G.sample(n, classes=None, seed=0)` returns the images that `gan-dist sample` writes; see
    `gan_dist.sampling.sample`. An architecture with a `sample` of its own keeps that one.

    Args:
        run_dir: a run directory that `train.py` has written. No file outside it is read.
        checkpoint: "latest" for the newest checkpoint that is not damaged, "best" for the one with the lowest FID, or
            the name of a directory in `run_dir/checkpoints`.
        device: where to put the module, for example "cuda".

    Raises:
        gan_dist.errors.UserError: there is no such run or checkpoint, or its files are damaged or do not belong
            together; or `device` cannot be used (its subclass ConfigError).
    """
    G = on_device(find_generator(Path(run_dir), checkpoint).make(), device)
    if not hasattr(G, "sample"):
        G.sample = functools.partial(sample, G)  # type: ignore[assignment]
    return G


def _directory(asked: Asked) -> Path:
    """Return the directory of the run that is trained, as an absolute path. A new run has it soon after its start."""
    return Path(asked.config.run.dir).resolve()


@contextmanager
def _alone() -> Iterator[None]:
    """A context for the one training or evaluation of this process.

    Raises:
        UserError: there is one already.
    """
    if not _work.acquire(blocking=False):
        where = f" ({_directory(_training[0])})" if _training else ""
        raise UserError(f"this process trains or evaluates a run already{where}: wait until that ends, or stop it")
    try:
        yield
    finally:
        _work.release()


def _call(work: Callable[[], T]) -> T:
    """Call `work` and leave the process as it was.

    Raises:
        UserError: in place of a well-known error of a library too.
    """
    try:
        with as_found():
            try:
                return work()
            except (Exception, KeyboardInterrupt) as error:
                rendezvous.tell(error)
                # The other processes of a run notice that this one has left when its connections are closed, and those
                # belong to the networks. An unexpected error of a single process keeps its frames for a debugger.
                if rendezvous.have_met() or not _is_unexpected(error):
                    _forget(error)
                raise
    except Exception as error:
        if _is_unexpected(error):
            raise
        advised = advise(error)
    raise advised.with_traceback(None) from None


def _is_unexpected(error: BaseException) -> bool:
    """Tell if an error has no advice in one line, as one in the user's own code."""
    return isinstance(error, Exception) and not isinstance(advise(error), UserError)


def _forget(error: BaseException | None) -> None:
    """Let an error and those that have caused it hold nothing of the training any more, neither memory nor a lock."""
    seen: list[BaseException] = []  # an error may be its own cause
    while error and error not in seen:
        seen.append(error)
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
