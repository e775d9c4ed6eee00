"""Checkpoints that hold other facts than the program wrote."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path


def forge(checkpoint: Path, **facts: object) -> None:
    """Change values in a checkpoint's `state.json`, and its manifest with them."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    state = {**json.loads((checkpoint / "state.json").read_text()), **facts}
    content = json.dumps(state).encode()
    (checkpoint / "state.json").write_bytes(content)
    manifest["state.json"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
