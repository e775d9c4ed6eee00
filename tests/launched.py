"""What a launcher tells the ranks of a run: a free port, and the variables of each rank."""

from __future__ import annotations

import socket


def free_port() -> int:
    """A port of this machine that nobody uses now."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def launched(size: int, port: int | str | None = None) -> list[dict[str, str]]:
    """The variables that a launcher on this machine sets for each of `size` ranks; by default with a free port."""
    port = free_port() if port is None else port
    world = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [{**world, **where, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]
