"""The rooms of the house: who may import what (docs/architecture.md)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

FILES = sorted((ROOT / "gan_dist").rglob("*.py"))
OWNERS = {
    "accelerate": ["gan_dist/parallel/distributed.py"],
    "torch.distributed": ["gan_dist/parallel/distributed.py", "gan_dist/parallel/peers.py"],
    "wandb": ["gan_dist/report/tracking.py"],
    "omegaconf": ["gan_dist/settings/config.py"],
}
PURE = (
    "losses",
    "regularizers",
    "models",
    "kernels",
)  # know tensors and modules, nothing of ranks, configs or trackers


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}"  # `import torch` is enough for torch.distributed


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    for imported in _imports(path):
        for library, owners in OWNERS.items():
            if imported == library or imported.startswith(f"{library}."):
                assert name in owners, f"{imported} belongs in {' or '.join(owners)}"
        if name.split("/")[1].removesuffix(".py") in PURE and imported.startswith("gan_dist"):
            assert imported.startswith(("gan_dist.models", "gan_dist.kernels")), f"{imported}: this file is to be pure"
        if not name.startswith(("gan_dist/cli", "gan_dist/__main__")):
            assert not imported.startswith("gan_dist.cli"), "the command line is on top"
