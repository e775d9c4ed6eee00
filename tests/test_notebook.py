"""Run the example notebook in a real kernel: train, show, interrupt, go on, sample."""

from __future__ import annotations

import asyncio
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT, TINY
from nbclient import NotebookClient


@pytest.mark.slow
def test_the_example_trains_is_interrupted_and_goes_on(tmp_path: Path) -> None:
    notebook = nbformat.read(ROOT / "examples/notebook.ipynb", as_version=4)
    cells = {tag: cell for cell in notebook.cells for tag in cell.metadata.get("tags", [])}
    assert not any(cell.get("outputs") for cell in notebook.cells), "the example is committed without outputs"
    cells["settings"].source += f"\nsettings += {TINY}"
    client = NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}})
    metrics = tmp_path / "runs/notebook/metrics.jsonl"

    async def execute() -> None:
        async with client.async_setup_kernel():
            for index, cell in enumerate(notebook.cells):
                before = metrics.read_text().count("\n") if metrics.exists() else 0
                task = asyncio.create_task(client.async_execute_cell(cell, index))
                if cell is cells["interrupt"]:
                    while metrics.read_text().count("\n") < before + 2 and not task.done():
                        await asyncio.sleep(0.05)
                    await client.km.interrupt_kernel()
                await task

    asyncio.run(execute())
    printed = ["".join(o.get("text", "") for o in cell.get("outputs", [])) for cell in notebook.cells]
    shown = [[kind for o in cell.get("outputs", []) for kind in o.get("data", {})] for cell in notebook.cells]
    assert any("finished: 4.0 kimg" in text for text in printed)
    interrupted = notebook.cells.index(cells["interrupt"])
    assert "stopped after" in printed[interrupted]
    stopped_at = float(printed[interrupted].rpartition("stopped after ")[2].split()[0])
    went_on = next(text for text in printed[interrupted + 1 :] if "finished after" in text)
    assert float(went_on.rpartition("finished after ")[2].split()[0]) >= stopped_at + 1
    assert sum("image/png" in kinds for kinds in shown) == 2, "the grid of the run, and the samples"
