"""The command line: `gan-dist COMMAND …`.

The files of this folder parse arguments and print results, and call `gan_dist.run` and others for the work. They import
torch only after the arguments are checked, because the import takes seconds.
"""

from __future__ import annotations

import importlib
import io
import multiprocessing
import os
import sys
import traceback
from contextlib import suppress
from pathlib import Path

from gan_dist.advice import advise
from gan_dist.errors import UserError, escaped
from gan_dist.files import replacing
from gan_dist.quiet import hide_warnings
from gan_dist.report.versions import package, versions

USAGE = """\
gan-dist: train generative adversarial networks on one GPU, on many GPUs, and on SLURM clusters

  gan-dist train [CONFIG.yaml] [key.sub=value ...]     train a run; does the same as python train.py ...
  gan-dist sample RUN [--n 64] [--seed 0] ...          generate images with a trained run
  gan-dist evaluate RUN [--n 50000] ...                measure FID, KID and Inception Score of a trained run
  gan-dist recipes [DIR]                               list the recipes, or the configs in a directory
  gan-dist init DIR                                    write launch files and SLURM's job scripts to a directory
  gan-dist prefetch [CONFIG.yaml] [key.sub=value ...]  download data and weights, for nodes without internet
  gan-dist plan [CONFIG.yaml] --gpus 8,64 ...          estimate time and memory of a run on 8 and on 64 GPUs
  gan-dist --version                                   print the versions of gan_dist, Python and the libraries

`gan-dist COMMAND --help` explains a command; `gan-dist train --help` lists every setting.
"""

# The names of files and of their functions.
COMMANDS = ("train", "sample", "evaluate", "recipes", "init", "prefetch", "plan")
TOGETHER = ("train", "evaluate")  # commands that several processes run together


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
    hide_warnings()
    _prepare_streams()
    command, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    try:
        return _call(command, rest)
    except UserError as error:
        return _report(error, command)
    except BrokenPipeError:  # the reader of the output has ended, as in `gan-dist --help | head -1`
        return _leave(1)
    except OSError as error:
        what = error.filename or type(error).__name__
        return _report(UserError(f"{what}: {error.strerror or error}"), command)
    except KeyboardInterrupt:
        _complain("interrupted")
        return _leave(130)
    except Exception as error:
        advised = advise(error)
        if isinstance(advised, UserError):
            return _report(advised, command)
        with suppress(OSError):
            traceback.print_exc()
        _tell(error, command)
        return _leave(1)
    finally:
        _drop_output()


def _call(command: str, rest: list[str]) -> int:
    """Call the function of a command with its arguments, and return the exit status.

    Raises:
        OSError: the output of a command could not be written. For `train` this is no failure: its log reports it.
    """
    if command in ("-h", "--help"):
        print(USAGE, end="", flush=True)
        return 0
    if command == "--version":
        print(package())
        print(", ".join(f"{name} {version}" for name, version in versions().items()), flush=True)
        return 0
    if command not in COMMANDS:
        _complain(f"unknown command {command!r}; choose one of {', '.join(COMMANDS)}")
        return 2
    status: int = getattr(importlib.import_module(f"gan_dist.cli.{command}"), command)(rest)
    if command == "train":
        return _note(status)
    sys.stdout.flush()
    return status


def _prepare_streams() -> None:
    """Make it possible to print to standard output and standard error, whatever they are.

    A closed one is replaced by /dev/null. Otherwise the next file that is opened would get its number, and a library
    that prints would write into this file. A character that a stream's encoding does not have is printed as an escape
    sequence.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest free number: this one
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with suppress(OSError):
                stream.reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """Drop output that cannot be written. Otherwise Python would try again at its end, and change the exit status."""
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except (OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def _complain(message: str) -> None:
    """Print a line on standard error, if that can be written."""
    with suppress(OSError):
        print(f"gan-dist: {escaped(message)}", file=sys.stderr, flush=True)


def _report(error: UserError, command: str) -> int:
    """Print an error in one line. If all processes have the same error, only the main process prints it."""
    rank = os.environ.get("RANK") or "0"
    elsewhere = error.everywhere and rank != "0"
    if not (elsewhere and _tell(error, command)):
        who = f"rank {rank}: " if _are_several() else ""
        _complain(f"{who}error: {error}")
    if not elsewhere:
        _tell(error, command)
    return _leave(error.exit_status)


def _tell(error: Exception, command: str) -> bool:
    """Tell the other processes of the run that this one ends; returns True if the main process knows it."""
    if not _are_several():
        return False
    if command not in TOGETHER:
        return True
    from gan_dist.parallel import rendezvous  # it imports torch

    return rendezvous.tell(error)


def _are_several() -> bool:
    """Tell if the launcher has started several processes."""
    size = os.environ.get("WORLD_SIZE", "")
    return size.isdecimal() and int(size) > 1


def _leave(status: int) -> int:
    """Return the exit status. If the run has several processes, end this process at once instead.

    A normal exit could wait for other processes that have already ended.
    """
    _note(status)
    if _are_several():
        for worker in multiprocessing.active_children():  # DataLoader workers would keep this process's sockets open
            worker.kill()
        _drop_output()
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
