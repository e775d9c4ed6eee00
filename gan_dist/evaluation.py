"""Measure the checkpoints of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from gan_dist.checkpoint.find import list_checkpoints, read_facts
from gan_dist.data.datasets import describe
from gan_dist.data.shared import load_shared
from gan_dist.kernels.layout import adapt
from gan_dist.kernels.switches import numerics
from gan_dist.metrics import Evaluator
from gan_dist.metrics.checkpoints import evaluate_checkpoints
from gan_dist.parallel.agreement import agree
from gan_dist.parallel.distributed import Distributed
from gan_dist.parallel.together import together
from gan_dist.report.tracking import read_metrics
from gan_dist.settings.schema import Config, must_agree
from gan_dist.wiring.checks import check_names
from gan_dist.wiring.data import class_probabilities, source_of, stage_dir
from gan_dist.wiring.kinds import kind_of
from gan_dist.wiring.networks import generator_of


def evaluate(
    config: Config, run_dir: Path, checkpoint: Path | None, results: Path, store: Callable[[dict[str, Any]], None]
) -> None:
    """Measure one checkpoint, or all checkpoints of a run. All processes call this function together.

    Args:
        config: the settings; the sections `metrics` and `data` say how to measure.
        run_dir: the run directory.
        checkpoint: the checkpoint to measure; None for all without a result of the same protocol in `results`.
        results: the file with earlier results, one JSON object per line.
        store: the main process calls it with each result.

    Raises:
        UserError: the data, the feature extractor or a checkpoint cannot be read.
    """
    check_names(config)
    agree(must_agree(config), config.train.meet_minutes)
    dist = Distributed("fp32", cpu=config.train.device == "cpu")

    def work() -> None:
        checkpoints, known = [checkpoint] if checkpoint else [], []
        if not checkpoint:
            checkpoints = dist.from_main(lambda: list_checkpoints(run_dir))
            known = dist.from_main(lambda: read_metrics(results))
        with numerics("fp32", exact=True):
            evaluator = _make_evaluator(config, dist)
            for result in evaluate_checkpoints(checkpoints, evaluator, load, known):
                if dist.is_main:
                    store(result)

    def load(path: Path) -> tuple[nn.Module, float]:
        # The network gets the memory layout that it has in training, so that both give bit-identical results.
        G = adapt(generator_of(path).to(dist.device), config.train.precision)
        return G, read_facts(path)["nimg"] / 1000

    together(dist, work)


def _make_evaluator(config: Config, dist: Distributed) -> Evaluator:
    source, kind = source_of(config.data), kind_of(config.data)
    info = dist.from_main(lambda: describe(source))
    kind.check_metrics(config, info)
    dataset, _ = load_shared(source, info, dist, stage_dir())
    return kind.make_evaluator(config, info, dataset, class_probabilities(dataset, info, config), dist)
