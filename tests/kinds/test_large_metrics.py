"""A metrics.jsonl of a long run is read line by line, and a message about memory says what needed it."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest
from conftest import TINY, read_until
from program import Program

RING = ["data.name=ring", "model.name=mlp", "model.g_args={tanh: false}", "model.conditional=false"]


@pytest.mark.slow
@pytest.mark.clause("4.3", "metrics.jsonl is read into memory as a whole, several times")
def test_large_file_takes_no_memory(program: Program) -> None:
    assert program.train("train.kimg=0.1", "run.dir=run").returncode == 0
    before = _peak(program)
    padding = "x" * 200_000
    with (program.cwd / "run/metrics.jsonl").open("w") as file:
        for i in range(600):
            print(json.dumps({"kimg": i / 10_000, "loss_D": 1.0, "note": padding}), file=file)
    assert _peak(program) - before < 50_000, "the file has 120,000 kB"
    with (program.cwd / "run/metrics.jsonl").open() as file:
        assert sum(1 for _ in file) > 600, "all lines are kept"


def _peak(program: Program) -> int:
    """Go on with a run for some iterations; returns the peak memory of the process in kB."""
    process = program.start("train", "run.dir=run", "resume=latest", "train.kimg=100000", "log.every_kimg=0.1")
    read_until(process, "kimg  D ")
    status = Path(f"/proc/{process.pid}/status").read_text()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])


@pytest.mark.slow
@pytest.mark.clause("4.3", "a lack of memory for metrics is blamed on networks, batches or data")
def test_what_needed_the_memory_is_named(program: Program) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**35, 2**35))"
    metrics = ["metrics.every_kimg=1", "metrics.num_images=500000000"]
    result = program.process("train", *TINY, *RING, *metrics, "run.dir=run", first=limit)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "while the metrics were computed; lower metrics.batch_size or metrics.num_images" in result.stderr
