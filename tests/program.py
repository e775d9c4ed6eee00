"""The command line for tests that drive it as a user does, of this tree or of another one: the fixture `program`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from forks import Forked
from launched import launched

Result = subprocess.CompletedProcess[str]

# The tree whose command line the tests drive; `python tests/kinds` sets it. Without it they drive this tree's, in this
# process where that is possible, because it is quicker.
TREE = os.environ.get("GAN_DIST_TEST_TREE")
COMMAND = "import sys; from gan_dist.cli import main; sys.exit(main())"


class Program:
    """The command line `gan-dist`, in a directory of its own.

    Attributes:
        cwd: the directory in which the commands run.

    Args:
        cwd: see above.
        here: runs a command in this process: `conftest.run_here`.
        tiny: adds the settings of a small run to arguments of `gan-dist train`.
    """

    def __init__(self, cwd: Path, here: Callable[..., Result], tiny: Callable[[Sequence[str]], list[str]]) -> None:
        self.cwd, self._here, self._tiny = cwd, here, tiny
        self._started: list[subprocess.Popen[str]] = []

    def with_copy_of(self, source: Path) -> Program:
        """Copy what is in `source` into the directory of the commands."""
        shutil.copytree(source, self.cwd, dirs_exist_ok=True)
        return self

    def __call__(self, *arguments: str, env: dict[str, str] | None = None) -> Result:
        """Run `gan-dist ARGUMENTS` to its end, in this process if the tree is this one."""
        if TREE is None:
            return self._here(self.cwd, *arguments, env=env)
        return self.process(*arguments, env=env)

    def train(self, *arguments: str, env: dict[str, str] | None = None) -> Result:
        """Run `gan-dist train` with the settings TINY before the given ones."""
        return self("train", *self._tiny(arguments), env=env)

    def process(
        self, *arguments: str, env: dict[str, str] | None = None, timeout: float = 120, first: str = ""
    ) -> Result:
        """Run `gan-dist ARGUMENTS` to its end in a process of its own; its status is -9 if it takes too long."""
        process = self.start(*arguments, env=env, first=first)
        try:
            out, error = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            out, error = process.communicate()
        return subprocess.CompletedProcess(arguments, process.returncode, out, error)

    def start(self, *arguments: str, env: dict[str, str] | None = None, first: str = "") -> subprocess.Popen[str]:
        """Start `gan-dist ARGUMENTS` in a process of its own, which is killed after the test if it still runs.

        It first runs the Python statement `first`, for example to close its standard output.
        """
        environment, code = {**os.environ, **(env or {})}, f"{first}\n{COMMAND}"
        if TREE is None:
            process: subprocess.Popen[str] = Forked(["-c", code, *arguments], self.cwd, environment)
        else:
            environment["PYTHONPATH"] = TREE
            command, pipe = [sys.executable, "-u", "-c", code, *arguments], subprocess.PIPE
            process = subprocess.Popen(
                command, cwd=self.cwd, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
            )
        self._started.append(process)
        return process

    def ranks(self, *arguments: Sequence[str], env: dict[str, str] | None = None) -> list[subprocess.Popen[str]]:
        """Start the ranks of one run, one for each list of arguments, with the variables that a launcher sets."""
        places = launched(len(arguments))
        return [self.start(*its, env={**place, **(env or {})}) for its, place in zip(arguments, places)]

    def end(self) -> None:
        """Kill what still runs."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
                process.communicate()
