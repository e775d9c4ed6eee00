"""What a launcher tells the ranks of a run: a free port, and the variables of each rank."""

from __future__ import annotations

import itertools
import os
import random
import socket
from contextlib import suppress

# Systems give their own ports from 32768 on to outgoing connections, so one of these could be taken before the ranks
# have it. Below that each worker of pytest-xdist has ports of its own.
EACH = 4000
_first = 10_000 + EACH * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 5)
_ports = itertools.count(random.randrange(EACH))


def free_port() -> int:
    """A port of this machine that nobody uses now, and that was not asked for a moment ago."""
    while True:
        with socket.socket() as server, suppress(OSError):
            server.bind(("127.0.0.1", _first + next(_ports) % EACH))
            return int(server.getsockname()[1])


def launched(size: int, port: int | str | None = None) -> list[dict[str, str]]:
    """The variables that a launcher on this machine sets for each of `size` ranks; by default with a free port."""
    port = free_port() if port is None else port
    world = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [{**world, **where, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]
