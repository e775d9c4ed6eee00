"""Processes that begin with torch and the package imported, which takes a core seconds: forks of one that waits.

They are real ones, children of the process that starts them, each with a number, an environment, a directory, pipes and
signals of its own. Their command line is `python ARGUMENTS`; what is read from the environment by an import alone, such
as PYTHONPATH, does not reach them.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import runpy
import socket
import subprocess
import sys
from contextlib import suppress
from typing import Any

PR_SET_CHILD_SUBREAPER = 36


class Forked(subprocess.Popen[str]):
    """As `subprocess.Popen([sys.executable, "-u", *command], …, text=True, start_new_session=True)`."""

    def __init__(
        self,
        command: list[str],
        cwd: os.PathLike[str] | str,
        env: dict[str, str],
        stdout: Any = subprocess.PIPE,
        stderr: Any = subprocess.PIPE,
    ) -> None:
        super().__init__(command, cwd=cwd, env=env, stdout=stdout, stderr=stderr, text=True)

    def _execute_child(self, args: list[str], *rest: Any) -> None:
        cwd, env, out, error = rest[4], rest[5], rest[12], rest[14]
        sys.audit("subprocess.Popen", sys.executable, args, cwd, env)
        try:
            self.pid = _start(args, os.fspath(cwd), env, out, error)
            self._child_created = True
        finally:
            for ours, its in ((rest[11], out), (rest[13], error)):
                if ours != -1:  # a pipe, and not the caller's own file
                    os.close(its)


@functools.cache
def _waiting() -> socket.socket:
    """The connection to the process that waits, which ends with this one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # torch looks at this one as it is imported; the command line sets it before.
    env = {**os.environ, "TORCH_CPP_LOG_LEVEL": "ERROR"}
    fd = theirs.fileno()
    subprocess.Popen([sys.executable, __file__, str(fd)], env=env, pass_fds=[fd], start_new_session=True)
    theirs.close()
    return ours


def _start(command: list[str], cwd: str, env: dict[str, str], out: int, error: int) -> int:
    """Its number. Between two forks it loses its parent; the nearest ancestor that asks for such orphans gets it."""
    connection, libc = _waiting(), ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        message = json.dumps({"command": command, "cwd": cwd, "env": env}).encode()
        socket.send_fds(connection, [message], [out, error])
        return int(connection.recv(100))
    finally:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 0)


def _import_all() -> None:
    import importlib
    import pkgutil

    import matplotlib.pyplot  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import torch._dynamo  # noqa: F401
    import torchmetrics  # noqa: F401

    import gan_dist

    for module in pkgutil.walk_packages(gan_dist.__path__, "gan_dist."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def _wait(connection: socket.socket) -> list[str]:
    """Fork for each message; returns the command in the forked process, where everything is as the message says."""
    while True:
        message, fds, _, _ = socket.recv_fds(connection, 2**20, 2)
        if not message:
            sys.exit()
        number, write = os.pipe()
        between = os.fork()
        if between == 0:
            child = os.fork()
            if child == 0:
                break
            os.write(write, str(child).encode())
            os._exit(0)
        os.waitpid(between, 0)
        connection.send(os.read(number, 100))
        for fd in (number, write, *fds):
            os.close(fd)
    os.setsid()
    os.dup2(fds[0], 1)
    os.dup2(fds[1], 2)
    for fd in (number, write, *fds, connection.detach()):
        os.close(fd)
    job = json.loads(message)
    os.environ.clear()
    os.environ.update(job["env"])
    os.chdir(job["cwd"])
    return job["command"]


def main() -> None:
    _import_all()
    command = _wait(socket.socket(fileno=int(sys.argv[1])))
    # The streams of the process that waits may have been files, and they would still take these for files.
    sys.stdout, sys.stderr = (os.fdopen(fd, "w", buffering=1, closefd=False) for fd in (1, 2))
    with suppress(ValueError):
        sys.path.remove(os.path.dirname(__file__))  # noqa: PTH120
    if command[0] == "-c":
        sys.argv, sys.path[:0] = ["-c", *command[2:]], [""]
        exec(compile(command[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv, sys.path[:0] = command, [os.path.dirname(command[0])]  # noqa: PTH120
        runpy.run_path(command[0], run_name="__main__")


if __name__ == "__main__":
    main()
