"""The command line: `gan-dist COMMAND …`.

The files of this folder parse arguments and print results, and call `gan_dist.run` and others for the work. They import
torch only after the arguments are checked, because the import takes seconds.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
import traceback
from contextlib import suppress
from pathlib import Path

from gan_dist.advice import advise
from gan_dist.errors import UserError
from gan_dist.files import replacing

USAGE = """\
gan-dist: train generative adversarial networks on one GPU, on many GPUs, and on SLURM clusters

  gan-dist train [CONFIG.yaml] [key.sub=value ...]     train a run; does the same as python train.py ...
  gan-dist sample RUN [--n 64] [--seed 0] ...          generate images with a trained run
  gan-dist evaluate RUN [--n 50000] ...                measure FID, KID and Inception Score of a trained run
  gan-dist recipes [DIR]                               list the configs in a directory (default: configs)
  gan-dist prefetch [CONFIG.yaml] [key.sub=value ...]  download data and weights, for nodes without internet
  gan-dist plan [CONFIG.yaml] --gpus 8,64 ...          estimate time and memory of a run on 8 and on 64 GPUs

`gan-dist COMMAND --help` explains a command; `gan-dist train --help` lists every setting.
"""

COMMANDS = ("train", "sample", "evaluate", "recipes", "prefetch", "plan")  # names of files and of their functions


def main(arguments: list[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: the command and its arguments; None for those in `sys.argv`.

    Returns:
        The exit status: 0 for success, 1 for a failure, 2 for wrong settings, 75 if a signal stopped the run, which can
        then be resumed, and 130 after Ctrl-C.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    # If a process of the run is lost, this package prints one line; torch's own fifty lines of warnings are hidden.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
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
    except BrokenPipeError:  # the reader of the output has ended, as in `gan-dist --help | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("gan-dist: interrupted", file=sys.stderr)
        return _leave(130)
    except Exception as error:
        advised = advise(error)
        if isinstance(advised, UserError):
            return _report(advised)
        traceback.print_exc()
        return _leave(1)


def _report(error: UserError) -> int:
    """Print an error in one line. If all processes have the same error, only the main process prints it."""
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if rank == 0 or not error.everywhere:
        who = f"rank {rank}: " if world_size > 1 else ""
        print(f"gan-dist: {who}error: {error}", file=sys.stderr, flush=True)
    return _leave(error.exit_status)


def _leave(status: int) -> int:
    """Return the exit status. If the run has several processes, end this process at once instead.

    A normal exit could wait for other processes that have already ended.
    """
    _note(status)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        for worker in multiprocessing.active_children():  # DataLoader workers would keep this process's sockets open
            worker.kill()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def _note(status: int) -> int:
    """Write the main process's exit status to the file that $GAN_DIST_STATUS_FILE names, and return the status.

    A job script reads it there, because a launcher replaces every exit status other than 0 by 1.
    """
    path = os.environ.get("GAN_DIST_STATUS_FILE")
    if path and os.environ.get("RANK", "0") == "0":
        with suppress(OSError), replacing(Path(path), flush=False) as file:
            file.write(f"{status}\n".encode())
    return status
