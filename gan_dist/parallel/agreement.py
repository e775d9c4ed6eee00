"""Compare in all processes of a run what must be the same in all of them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from importlib.metadata import version
from pathlib import Path

import torch

from gan_dist.errors import ConfigError
from gan_dist.parallel import rendezvous
from gan_dist.parallel.peers import Peers
from gan_dist.parallel.signals import StopRequest

_LIBRARIES = ("torch", "numpy", "accelerate", "torchvision", "pillow")
log = logging.getLogger(__name__)

# Environment variables that change what torch and its libraries compute.
_NUMERICS = ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "CUBLAS_WORKSPACE_CONFIG")


def agree(settings: dict[str, str], minutes: float, signals: StopRequest | None = None) -> None:
    """Wait until all processes of the run are there, and refuse to start if they are not alike.

    They must have the same settings, source files of this package, and versions of libraries. All processes call this
    function together, before anything that depends on settings is made.

    Args:
        settings: the settings of this process, each as text.
        minutes: how long to wait for the other processes.
        signals: the first signal ends the wait.

    Raises:
        ConfigError: the processes differ. All of them raise the same error, which names the rank and both values.
        UserError: see `gan_dist.parallel.rendezvous.join`.
    """
    peers = rendezvous.join(minutes, signals)
    if peers is None:
        return
    try:
        found = difference(peers, {**settings, **_software()})
    except RuntimeError as error:
        raise peers.failure(error) from None
    if found:
        raise ConfigError(f"the processes of this run differ: {found}; give all of them the same settings and versions")


def say_processors(peers: Peers, processor: str) -> None:
    """Log a warning if the processes have different processors, which may give other bits.

    All processes call this function together.

    Args:
        peers: the other processes.
        processor: name of the processor on which this process computes.
    """
    found = difference(peers, {"the processor": processor, "the number of threads": str(torch.get_num_threads())})
    if found and peers.rank == 0:
        log.warning("%s: the same bits as on equal processors are not promised", found)


def difference(peers: Peers, facts: dict[str, str]) -> str:
    """Return the first difference between the facts of rank 0 and those of another process; "" if there is none.

    All processes call this function together and get the same answer. Only hashes are compared, which is quick with
    many processes. The facts themselves are sent only if the hashes differ.

    Args:
        peers: the other processes.
        facts: names and values.
    """
    store, here = peers.store, peers.turn("facts")
    text = json.dumps(facts)
    mine = hashlib.sha256(text.encode()).hexdigest()
    store.set(f"{here}/hash/{peers.rank}", mine)
    if peers.rank == 0:
        keys = [f"{here}/hash/{rank}" for rank in range(peers.world_size)]
        peers.wait_for(keys)
        hashes = [value.decode() for value in store.multi_get(keys)]
        store.set(f"{here}/other", str(next((rank for rank, value in enumerate(hashes) if value != mine), 0)))
    peers.wait_for([f"{here}/other"])
    other = int(store.get(f"{here}/other"))
    if not other:
        return ""
    if peers.rank in (0, other):
        store.set(f"{here}/text/{peers.rank}", text)
    keys = [f"{here}/text/0", f"{here}/text/{other}"]
    peers.wait_for(keys)
    first, second = (json.loads(value) for value in store.multi_get(keys))
    if store.add(f"{here}/read", 1) == peers.world_size:
        store.set(f"{here}/read/all", "")
    peers.wait_for([f"{here}/read/all"])  # the processes will end, and rank 0 may keep the store
    names = [name for name in {**first, **second} if first.get(name) != second.get(name)]
    values = [str(its.get(names[0], "nothing"))[:200] for its in (second, first)]
    more = f" (and {len(names) - 1} more: {', '.join(names[1:4])}{', …' if len(names) > 4 else ''})" * (len(names) > 1)
    return f"rank {other} has {names[0]}={values[0]}, rank 0 has {names[0]}={values[1]}{more}"


def _software() -> dict[str, str]:
    """The libraries and the source files of this process, and what else decides what they compute."""
    package = Path(__file__).parent.parent
    return {
        "the kind of device": "GPU" if torch.cuda.is_available() else "CPU",
        **{f"the version of {name}": version(name) for name in _LIBRARIES},
        "the version of CUDA": str(torch.version.cuda),
        "the version of cuDNN": str(torch.backends.cudnn.version()),
        **{name: os.environ.get(name, "") for name in _NUMERICS},
        **{f"the hash of gan_dist/{path.relative_to(package)}": _hash(path) for path in sorted(package.rglob("*.py"))},
    }


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
