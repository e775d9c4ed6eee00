"""`python tests/mutants`: does a test fail for each fault in `mutants.toml`? README.md says how to use it."""

from __future__ import annotations

import argparse
import ast
import importlib
import itertools
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import pytest

ROOT = Path(__file__).parent.parent.parent
FILE = Path(__file__).with_name("mutants.toml")
CAUGHT = "caught"
LIBRARIES = ("torch", "accelerate", "scipy.stats", "sklearn.datasets", "omegaconf", "torchmetrics.image.fid", "wandb")
LIBRARIES += ("hypothesis.strategies", "matplotlib.figure", "torchvision", "torch._dynamo")
LIMIT = 300  # seconds that one test may take
TESTS_FAILED = 1  # the exit status of pytest when tests ran and some failed; 2 to 5 mean that the test did not run


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        name: what the command calls it.
        file: the file to change, below gan_dist/.
        old: text of one line, which occurs in the file exactly once.
        new: what takes its place.
        test: the pytest node id of a test that fails then.
        why: what would go wrong for a user.
    """

    name: str
    file: str
    old: str
    new: str
    test: str
    why: str

    @property
    def folder(self) -> str:
        """The part of the package: a folder, or a file that lies in none."""
        return self.file.split("/")[0]

    def changed(self, text: str) -> str:
        """The file's content with the fault.

        Raises:
            ValueError: the line to change is not there exactly once, or the result is not Python.
        """
        if "\n" in self.old + self.new or text.count(self.old) != 1:
            raise ValueError(f"the line to change is not there exactly once, but {text.count(self.old)} times")
        changed = text.replace(self.old, self.new)
        try:
            same = ast.dump(ast.parse(changed)) == ast.dump(ast.parse(text))
        except SyntaxError as error:
            raise ValueError(f"the changed file is not Python: {error}") from None
        if same:
            raise ValueError("the change changes no code")
        return changed

    def test_exists(self) -> bool:
        """Tell if the file of the test defines the function; the parameters in brackets are not checked."""
        path, _, function = self.test.partition("::")
        if not (ROOT / path).is_file():
            return False
        nodes = ast.parse((ROOT / path).read_text()).body
        return function.partition("[")[0] in {node.name for node in nodes if isinstance(node, ast.FunctionDef)}


def load() -> list[Mutant]:
    """All mutants of `mutants.toml`, in its order."""
    return [Mutant(**entry) for entry in tomllib.loads(FILE.read_text())["mutant"]]


def _run_pytest(root: Path, arguments: list[str], output: Path) -> None:
    """Run pytest in this process, which has just been forked, and end it with pytest's exit status."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.chdir(root)
    os.environ |= {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    sys.path[0] = str(root)
    status = 3  # pytest's own for an internal error
    try:
        status = int(pytest.main(arguments))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


class Copy:
    """A copy of the repository's files in a temporary directory, where tests can run with a changed package."""

    def __init__(self, folder: Path) -> None:
        self.root, self.stamps = folder / "repository", itertools.count(int(time.time()) + 10)
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).exists():
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.root / name, follow_symlinks=False)  # the recipes are behind links

    def run(self, tests: Sequence[str], limit: float, *options: str) -> tuple[int | None, str]:
        """Run tests with the copy of the package first on the path: (exit status or None if it took too long, output).

        The process is forked from this one, which has imported the libraries that most tests import, so that a test
        takes one second instead of six. A test that fails may leave processes behind, for example a training run that
        it did not stop. They are ended.
        """
        output = self.root.parent / "output"
        arguments = ["-n0", "-q", f"--basetemp={self.root.parent / 'pytest'}", *options, *tests]
        process = multiprocessing.get_context("fork").Process(target=_run_pytest, args=(self.root, arguments, output))
        process.start()
        process.join(limit)
        status = process.exitcode
        process.kill()
        self._end_processes()
        process.join()
        return status, output.read_text(errors="replace")

    def _end_processes(self) -> None:
        """End all processes that were started with this copy on their path, which no others have."""
        mark = f"PYTHONPATH={self.root}\0".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if mark in (folder / "environ").read_bytes():
                    os.kill(int(folder.name), signal.SIGKILL)

    def _write(self, path: Path, text: str) -> None:
        """Write a file with a time of its own: Python takes a compiled file if the time and the size fit."""
        path.write_text(text)
        os.utime(path, (stamp := next(self.stamps), stamp))

    def judge(self, mutant: Mutant) -> str:
        """What becomes of a mutant, in words; CAUGHT if its test fails."""
        path = self.root / "gan_dist" / mutant.file
        before = path.read_text() if path.is_file() else ""
        try:
            self._write(path, mutant.changed(before))
        except ValueError as error:
            return str(error)
        try:
            status, output = self.run([mutant.test], LIMIT, "-x", "--tb=short")
        finally:
            self._write(path, before)
        if status == TESTS_FAILED:
            return CAUGHT
        if status == 0:
            return f"SURVIVED {mutant.test}"
        last = (output.strip().splitlines() or ["no output"])[-1]
        return f"the test took more than {LIMIT} s" if status is None else f"the test did not run: {last}"

    def without_faults(self, tests: Sequence[str]) -> dict[str, str]:
        """Run all tests on the unchanged package; returns what is wrong with those that do not pass, by test."""
        wrong: dict[str, str] = {}
        while tests := [test for test in tests if test not in wrong]:
            status, output = self.run(tests, LIMIT + 60 * len(tests), "-rA", "--tb=short", "--show-capture=no")
            absent = re.findall(r"^ERROR: not found: (.*)$", output, re.M)
            missing = [test for test in tests if any(line.endswith(f"/{test}") for line in absent)]
            wrong |= dict.fromkeys(missing, "test not found")
            if missing:
                continue
            if status not in (0, TESTS_FAILED):
                sys.exit(f"The tests cannot be run on the unchanged package:\n{output[-3000:]}")
            results = re.findall(r"^(PASSED|FAILED|ERROR) (\S.*)$", output, re.M)
            for test in tests:
                own = [word for word, name in results if re.match(rf"{re.escape(test)}($|\[| - )", name)]
                if not own or set(own) != {"PASSED"}:
                    wrong[test] = "the test does not pass on the unchanged package"
            break
        return wrong


def main() -> int:
    """Run the mutants that the arguments choose; returns 1 if any of them is not caught."""
    parser = argparse.ArgumentParser("python tests/mutants", description="Test the tests: each fault must fail one.")
    parser.add_argument("--only", help="names, separated by commas")
    parser.add_argument("--folder", help="a folder or file of gan_dist/, for example engine or rng.py")
    parser.add_argument("-j", type=int, default=1, help="how many run at a time (default: 1)")
    options = parser.parse_args()
    mutants = load()
    if options.only:
        names = options.only.split(",")
        if unknown := set(names) - {mutant.name for mutant in mutants}:
            parser.error(f"no mutant is called {', '.join(sorted(unknown))}")
        mutants = [mutant for mutant in mutants if mutant.name in names]
    mutants = [mutant for mutant in mutants if options.folder in (None, mutant.folder)]
    if not mutants:
        parser.error(f"--folder {options.folder}: no mutant is there")

    for name in LIBRARIES:
        importlib.import_module(name)
    started, width, free = time.monotonic(), max(len(mutant.name) for mutant in mutants), Lock()
    with tempfile.TemporaryDirectory(prefix="mutants-") as temporary, ThreadPoolExecutor(options.j) as pool:
        copies = [Copy(Path(temporary, str(i))) for i in range(options.j)]
        tests = list(dict.fromkeys(mutant.test for mutant in mutants))
        print(f"{len(tests)} tests on the unchanged package …", flush=True)
        wrong = copies[0].without_faults(tests)

        def judge(mutant: Mutant) -> str:
            begun = time.monotonic()
            with free:
                copy = copies.pop()
            try:
                result = wrong.get(mutant.test) or copy.judge(mutant)
            finally:
                with free:
                    copies.append(copy)
            print(f"{mutant.name:<{width}}  {result} ({time.monotonic() - begun:.0f} s)", flush=True)
            return result

        results = list(pool.map(judge, mutants))
    others = [mutant for mutant, result in zip(mutants, results) if result != CAUGHT]
    print(f"{len(mutants) - len(others)} of {len(mutants)} mutants were caught, in {time.monotonic() - started:.0f} s.")
    for mutant in others:
        print(f"Not caught: {mutant.name} in gan_dist/{mutant.file}: {mutant.why}")
    return 1 if others else 0


if __name__ == "__main__":
    sys.exit(main())
