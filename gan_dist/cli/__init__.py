"""The command line: `gan-dist COMMAND …`. Parsing and printing only; heavy imports wait until they are needed."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
import traceback
from contextlib import suppress
from pathlib import Path

from gan_dist.errors import UserError

USAGE = """\
gan-dist: train generative adversarial networks on one GPU, on many, and on SLURM clusters

  gan-dist train [CONFIG.yaml] [key.sub=value ...]     train; the same as python train.py ...
  gan-dist sample RUN [--n 64] [--seed 0] ...          images from a trained run
  gan-dist evaluate RUN [--n 50000] ...                FID, KID and Inception Score of a trained run
  gan-dist recipes [DIR]                               list the configs of a directory (default: configs)
  gan-dist prefetch [CONFIG.yaml] [key.sub=value ...]  fetch data and weights for a run on nodes without internet
  gan-dist plan [CONFIG.yaml] --gpus 8,64 ...          time and memory that a run will take on so many GPUs

`gan-dist COMMAND --help` has the details; `gan-dist train --help` lists every setting.
"""

COMMANDS = ("train", "sample", "evaluate", "recipes", "prefetch", "plan")  # a file and a function each


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns its exit status: 0 done, 1 failed, 2 bad settings, 75 stopped and resumable."""
    arguments = sys.argv[1:] if arguments is None else arguments
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a lost peer is one line of ours, not fifty of torch's
    command, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    try:
        if command in ("-h", "--help"):
            print(USAGE, end="")
            return 0
        if command in COMMANDS:
            run = getattr(importlib.import_module(f"gan_dist.cli.{command}"), command)
            return _note(run(rest)) if command == "train" else run(rest)
        print(f"gan-dist: unknown command {command!r}; choose one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    except UserError as error:
        return _report(error)
    except BrokenPipeError:  # `… --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("gan-dist: interrupted", file=sys.stderr)
        return _leave(130)
    except Exception:
        traceback.print_exc()
        return _leave(1)


def _report(error: UserError) -> int:
    """One line on the terminal; of an error that all processes have alike, the main process's alone."""
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if rank == 0 or not error.everywhere:
        who = f"rank {rank}: " if world_size > 1 else ""
        print(f"gan-dist: {who}error: {error}", file=sys.stderr, flush=True)
    return _leave(error.exit_status)


def _leave(status: int) -> int:
    """The exit status; one of several processes ends here and now, as nothing at exit may wait for the others."""
    _note(status)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        for worker in multiprocessing.active_children():  # they would keep sockets open
            worker.kill()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def _note(status: int) -> int:
    """Leave the main process's exit status where a job script asks for it: launchers make 1 of all but 0."""
    path = os.environ.get("GAN_DIST_STATUS_FILE")
    if path and os.environ.get("RANK", "0") == "0":
        with suppress(OSError):
            Path(path).write_text(f"{status}\n")
    return status
