"""Measure the checkpoints of a run."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from gan_dist.checkpoint.directory import EVALUATIONS
from gan_dist.checkpoint.find import list_checkpoints
from gan_dist.checkpoint.lock import refuse_links
from gan_dist.data import DataInfo
from gan_dist.data.datasets import describe
from gan_dist.data.key import reference_key
from gan_dist.data.shared import load_shared
from gan_dist.errors import ConfigError, UserError
from gan_dist.kernels.layout import adapt
from gan_dist.kernels.switches import numerics
from gan_dist.metrics import Evaluator, Reference
from gan_dist.parallel.agreement import agree
from gan_dist.parallel.distributed import Distributed
from gan_dist.parallel.together import together
from gan_dist.parts import load_plugins
from gan_dist.report.tracking import append_line, as_json, read_metrics
from gan_dist.settings.checks import check
from gan_dist.settings.config import read_overrides
from gan_dist.settings.schema import Config, Train, must_agree
from gan_dist.wiring.data import (
    class_probabilities,
    keep_classes,
    registered_dataset,
    source_of,
    stage_dir,
    use_given,
    use_paths,
)
from gan_dist.wiring.figures import difference
from gan_dist.wiring.kinds import kind_of
from gan_dist.wiring.networks import SavedGenerator, find_generator, read_generator
from gan_dist.wiring.own_config import Asked
from gan_dist.wiring.parts import check_names, named_parts

_OF_TRAINING = ("loss.", "train.", "tracking.", "callbacks")  # settings of parts that an evaluation does not use

log = logging.getLogger(__name__)


def evaluate(
    run_dir: Path,
    checkpoint: str,
    settings: Sequence[str],
    num_images: int | None,
    show: Callable[[dict[str, Any]], None] = lambda result: None,
    dataset: Any = None,
) -> list[dict[str, Any]]:
    """Measure one checkpoint, or all checkpoints of a run, and add each result to `run_dir/evaluations.jsonl`.

    All processes call this function together.

    A run that trains meanwhile writes and deletes checkpoints, so only the main process looks into the run directory.

    Args:
        run_dir: the run directory.
        checkpoint: "latest", "best" or a name; "all" for all without a result of the same protocol in the file.
        settings: replacements key.sub=value of the run's settings. `train.device=cpu` computes on the CPU.
        num_images: number of images to generate; None for the usual number of this kind of data.
        show: the main process calls it with each result as soon as it is in the file.
        dataset: a data set that was given from Python; None for the one that `data.name` names.

    Returns:
        The results. Each is a dict with `checkpoint` (name of the directory), `kimg`, the value of each metric, and
        `protocol`.

    Raises:
        ConfigError: the data do not fit the run's generator, or results cannot be added to their file.
        UserError: the data, the feature extractor or a checkpoint cannot be read.
    """
    asked = {"--checkpoint": checkpoint, "--n": str(num_images), "settings": " ".join(settings)}
    _use_plugins(settings)
    agree(asked, Train.meet_minutes)
    dist = Distributed("fp32", cpu="train.device=cpu" in settings)
    every, results = checkpoint == "all", run_dir / EVALUATIONS

    def find() -> SavedGenerator:
        refuse_links(run_dir)
        _check_writable(results)
        found = find_generator(run_dir, "latest" if every else checkpoint, settings)
        use_given(found.config, dataset)
        _complete(found, settings, num_images)
        return found

    def work() -> list[dict[str, Any]]:
        found, measured = dist.from_main(find), []
        with numerics("fp32", exact=True):
            evaluator = _make_evaluator(found, run_dir, dist, dataset)
            generators = _all_generators(run_dir, results, evaluator.protocol, dist) if every else iter([found])
            for saved in generators:
                # The network gets the memory layout that it has in training, so that both give bit-identical results.
                G = adapt(saved.make().to(dist.device), found.config.train.precision)
                figures = {"kimg": saved.facts["nimg"] / 1000, **evaluator(G), "protocol": evaluator.protocol}
                measured.append({"checkpoint": saved.path.name, **figures})
                if dist.is_main:
                    _add(results, measured[-1])
                    show(measured[-1])
        return measured

    return together(dist, work)


def evaluate_module(G: nn.Module, asked: Asked, num_images: int | None) -> dict[str, Any]:
    """Measure a generator that is no checkpoint of a run. All processes call this function together.

    Args:
        G: the generator, as `gan_dist.load_generator` returns it. It does not change.
        asked: the settings of the data and of the metrics, and the data set if it was given from Python.
        num_images: see `evaluate`.

    Returns:
        The value of each metric, and `protocol`.

    Raises:
        ConfigError: G has no attribute `z_dim`, `num_classes` or `image_shape`, or the data do not fit G.
        UserError: the data or the feature extractor cannot be read.
    """
    missing = [name for name in ("z_dim", "num_classes", "image_shape") if not hasattr(G, name)]
    if missing:
        raise ConfigError(f"the generator {type(G).__name__} needs the attributes {', '.join(missing)} to be measured")
    shape: Sequence[int] = G.image_shape  # type: ignore[assignment]
    facts: dict[str, Any] = {
        "image_shape": list(shape),
        "num_classes": G.num_classes,
        "class_names": getattr(G, "class_names", None),
        "paths": {},
        "environment": {},
    }
    config = asked.config
    use_given(config, asked.dataset)
    load_plugins(config.plugins)
    config.model.conditional = bool(G.num_classes)
    given = SavedGenerator(Path(type(G).__name__), config, config.model, facts, {})
    agree(must_agree(config), Train.meet_minutes)
    dist = Distributed("fp32", cpu=config.train.device == "cpu")

    def work() -> dict[str, Any]:
        dist.from_main(lambda: _complete(given, (), num_images))
        with numerics("fp32", exact=True):
            evaluator = _make_evaluator(given, None, dist, asked.dataset)
            figures = evaluator(adapt(copy.deepcopy(G).to(dist.device).eval(), "fp32"))
        return {**figures, "protocol": evaluator.protocol}

    return together(dist, work)


def _use_plugins(settings: Sequence[str]) -> None:
    """Import the plugins that settings name, and refuse settings that change nothing in an evaluation.

    Raises:
        ConfigError: there is such a setting, or a plugin cannot be imported.
    """
    named = dict(read_overrides(settings))
    for name in named:
        if not name.startswith(("metrics.", "data.")) and name not in ("train.device", "plugins"):
            raise ConfigError(f"{name} changes nothing here: use metrics.*, data.*, train.device or plugins")
    load_plugins(named.get("plugins", []))


def _add(results: Path, result: dict[str, Any]) -> None:
    """Add a result to the file."""
    try:
        append_line(results, as_json(result))
    except OSError as error:
        raise UserError(f"{results}: cannot add the result there ({error.strerror})") from None


def _check_writable(results: Path) -> None:
    """Check that results can be added to their file, before anything is measured.

    Raises:
        ConfigError: they cannot.
    """
    folder = results.parent
    if folder.is_dir() and not os.access(results if results.exists() else folder, os.W_OK):
        raise ConfigError(f"{results}: the result cannot be added there; measure a copy of the run on another disk")


def _complete(found: SavedGenerator, settings: Sequence[str], num_images: int | None) -> None:
    """Set the number of images and the paths in the settings with which a generator is measured, and check them."""
    config = found.config
    use_paths(config, found.facts["paths"], settings)
    if num_images is None and not any(text.startswith("metrics.num_images=") for text in settings):
        num_images = kind_of(config.data).num_images
    if num_images is not None:
        config.metrics.num_images = num_images
    check(config)
    parts = [part for part in named_parts(config) if not part.setting.startswith(_OF_TRAINING)]
    check_names(parts, lambda: found.facts["environment"])


def _make_evaluator(found: SavedGenerator, run_dir: Path | None, dist: Distributed, given: Any) -> Evaluator:
    config, names = found.config, found.facts["class_names"]
    given = registered_dataset(config.data) if given is None else given
    source, kind = source_of(config.data, given), kind_of(config.data)
    info = dist.from_main(lambda: describe(source))
    info = info if names is None else keep_classes(info, names)
    _check_fit(found, config, info)
    kind.check_metrics(config, info)
    dataset, key = load_shared(source, info, dist, stage_dir())
    probs = class_probabilities(dataset, info, config)
    if given is not None and dist.is_main and found.facts.get("data_key", key) != key:
        log.warning("dataset=: %s was trained on other images; its generator is measured against these", found.path)
    measured_key = dist.from_main(lambda: reference_key(dataset, key))
    return kind.make_evaluator(
        config, Reference(dataset, info, measured_key, probs, config.data.workers), run_dir, dist
    )


def _check_fit(found: SavedGenerator, config: Config, info: DataInfo) -> None:
    """Check that the data have the size, the channels and the classes of the generator's images.

    Raises:
        ConfigError: they have others; a figure would compare images of two kinds.
    """
    shape, classes = found.facts["image_shape"], found.facts["num_classes"]
    if list(info.image_shape) != shape:
        made, real = ("x".join(map(str, sizes)) for sizes in (shape, info.image_shape))
        raise ConfigError(
            f"{found.path}: its generator makes images of {made} (channels, height, width), and the data set's are "
            f"{real}: leave out data.name, data.image_size, data.channels and data.stacked"
        )
    if (info.num_classes if config.model.conditional else 0) != classes:
        raise ConfigError(
            f"{found.path}: its generator takes {classes or 'no'} classes, and the data set has {info.num_classes}: "
            "leave out data.name, data.class_folders and model.conditional, or name the right data.root"
        )


def _all_generators(
    run_dir: Path, results: Path, protocol: dict[str, Any], dist: Distributed
) -> Iterator[SavedGenerator]:
    """Read one after the other the generators of all checkpoints that have no result of this protocol yet.

    A checkpoint that the run has deleted meanwhile is left out, and that is said.
    """

    def names() -> list[Path]:
        known = list(read_metrics(results))
        done = {result.get("checkpoint") for result in known if result.get("protocol") == protocol}
        other = [result.get("protocol") for result in known if result.get("protocol") != protocol]
        if other:
            before = other[-1] if isinstance(other[-1], dict) else {}
            log.warning(
                "%s: %d results were measured in another way and do not count as done (the last one: %s)",
                results,
                len(other),
                difference(before, protocol),
            )
        return [path for path in list_checkpoints(run_dir) if path.name not in done]

    def read(path: Path) -> SavedGenerator | None:
        try:
            return read_generator(path)
        except UserError:
            if path.exists():
                raise
            return None

    gone = []
    for path in dist.from_main(names):
        saved = dist.from_main(lambda path=path: read(path))  # type: ignore[misc]
        if saved is None:
            gone.append(path.name)
        else:
            yield saved
    if gone and dist.is_main:
        log.warning("%s: deleted by the run before they were measured: %s", run_dir, ", ".join(gone))
