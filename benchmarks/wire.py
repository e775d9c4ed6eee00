"""Bytes that two processes all-reduce per iteration: gan_dist compared with a plain loop over two DDP modules.

    python -m benchmarks wire [CONFIG.yaml] [key.sub=value ...] [--json FILE]

Communication hooks count the bytes; they see every bucket of gradients that DistributedDataParallel sends. The plain
loop is the usual one: D and G are both wrapped, and the backward pass of G's loss, through D(G(z)), reaches D's
parameters too.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy
from torch.nn.parallel import DistributedDataParallel

from gan_dist.cli.arguments import read_config
from gan_dist.data.datasets import describe
from gan_dist.parallel.distributed import Distributed
from gan_dist.wiring.build import build
from gan_dist.wiring.data import source_of
from gan_dist.wiring.networks import make_state

ITERATIONS = 5
QUIET = ["metrics.every_kimg=0", "sample.every_kimg=0", "checkpoint.every_kimg=0", "tracking.wandb=disabled",
         "train.device=cpu"]  # fmt: skip


def counter(sent: dict[str, int], name: str) -> Callable[..., Any]:
    def hook(_, bucket):  # no annotations here: torch compares them, and they must not be strings
        buffer = bucket.buffer().div_(torch.distributed.get_world_size())
        sent[name] += buffer.nbytes
        return torch.distributed.all_reduce(buffer, async_op=True).get_future().then(lambda f: f.value()[0])

    return hook


def ours(arguments: list[str], dist: Distributed) -> dict[str, int]:
    config = read_config([*arguments, *QUIET])
    sent = {"G": 0, "D": 0}
    with tempfile.TemporaryDirectory() as folder:
        trainer = build(config, describe(source_of(config.data)), Path(folder), None, dist).trainer
        for name in sent:
            getattr(trainer.step.wrapped, name).wrapper.register_comm_hook(None, counter(sent, name))
        for _ in range(ITERATIONS):
            trainer.step(trainer.batches)
    return {name: n // ITERATIONS for name, n in sent.items()}


def plain(arguments: list[str], dist: Distributed) -> dict[str, int]:
    config = read_config([*arguments, "train.sync_batch_norm=false"])
    info = describe(source_of(config.data))
    state = make_state(config, info, dist)
    G: nn.Module = DistributedDataParallel(state.G, broadcast_buffers=False)
    D: nn.Module = DistributedDataParallel(state.D, broadcast_buffers=False)
    sent = {"G": 0, "D": 0}
    G.register_comm_hook(None, counter(sent, "G"))
    D.register_comm_hook(None, counter(sent, "D"))
    n = config.train.batch_size // dist.world_size
    y = torch.randint(info.num_classes, (n,)) if config.model.conditional else None
    ones, zeros = torch.ones(n), torch.zeros(n)
    for _ in range(ITERATIONS):
        for _ in range(config.train.n_critic):
            fake = G(torch.randn(n, config.model.z_dim), y)
            state.opt_D.zero_grad()
            real = torch.rand(n, *info.image_shape) * 2 - 1
            (cross_entropy(D(real, y), ones) + cross_entropy(D(fake.detach(), y), zeros)).backward()
            state.opt_D.step()
        state.opt_G.zero_grad()
        cross_entropy(D(fake, y), ones).backward()
        state.opt_G.step()
    return {name: n // ITERATIONS for name, n in sent.items()}


def process(rank: int, port: int, arguments: list[str], file: Path | None) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
    torch.set_num_threads(1)
    dist = Distributed("fp32", cpu=True)
    rows = {"gan_dist": ours(arguments, dist), "plain loop over two DDP modules": plain(arguments, dist)}
    if dist.is_main:
        print(f"{date.today()}, torch {version('torch')}, accelerate {version('accelerate')}, 2 processes over gloo")
        print(f"{'bytes all-reduced per iteration':<36}{'of G':>12}{'of D':>12}{'together':>12}{'ratio':>8}")
        least = sum(rows["gan_dist"].values())
        for name, sent in rows.items():
            total = sum(sent.values())
            print(f"{name:<36}{sent['G']:>12,}{sent['D']:>12,}{total:>12,}{total / least:>8.2f}")
        if file:
            file.write_text(json.dumps({"arguments": arguments, "bytes": rows}, indent=1) + "\n")
    dist.end()


def main() -> None:
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        raise SystemExit(__doc__)
    file = Path(arguments.pop(arguments.index("--json") + 1)) if "--json" in arguments else None
    arguments = [argument for argument in arguments if argument != "--json"]
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    torch.multiprocessing.spawn(process, (port, arguments, file), nprocs=2)


if __name__ == "__main__":
    main()
