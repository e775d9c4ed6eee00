"""`python tests/kinds`: the faults that were found by trying, before and after. README.md says how to use it."""

from __future__ import annotations

import argparse
import ast
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parent.parent.parent
FOUND_IN = "51cea3b"  # the commit in which the faults were found
CLAUSES = {
    "1.1": "text that is parsed as YAML",
    "1.2": "ranks that do not agree",
    "1.3": "a resume that changes the experiment",
    "1.4": "the truth about a run",
    "1.5": "folders that are listed in silence",
    "1.6": "one picture that becomes half of the data",
    "1.7": "depths of samples",
    "1.8": "figures that are not identified",
    "1.9": "files that mix",
    "1.10": "choices of one rank",
    "1.11": "settings that are cleared, overwritten, or mean never",
    "2.1": "waiting for data",
    "2.2": "waiting before the group exists",
    "2.3": "ranks after the launcher is killed",
    "2.4": "jobs that are requeued without end",
    "2.5": "FIFOs, devices and links in place of files",
    "2.6": "file systems that cannot flush",
    "3.1": "an output or a log that fails",
    "3.2": "what ends after training",
    "3.3": "tracebacks for what a user types or a file holds",
    "3.4": "runs beyond 10^12 images",
    "3.5": "failed starts that leave something behind",
    "4.1": "pictures that take memory",
    "4.2": "configs that take memory, time or secrets",
    "4.3": "large metrics.jsonl",
    "4.4": "listing a million files",
    "4.5": "training that does not fit into memory",
    "5": "what people see",
}
Row = tuple[str, str, str]  # clause, what went wrong, name of the test


def results_on(tree: Path, arguments: list[str]) -> dict[Row, str]:
    """Run the tests on a tree; returns for each "passed", "FAILED" or "skipped"."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        env = os.environ if tree == ROOT else {**os.environ, "GAN_DIST_TEST_TREE": str(tree)}
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "--dist=load",
            "-p",
            "no:cacheprovider",
            f"--junitxml={report}",
        ]
        subprocess.run([*command, "tests/kinds", *arguments], cwd=ROOT, env=env, check=False, stdout=subprocess.DEVNULL)
        if not report.exists():
            sys.exit(f"pytest could not run on {tree}")
        cases = ElementTree.parse(report).iter("testcase")
        return {row: _outcome(case) for case in cases for row in _rows(case)}


def _rows(case: ElementTree.Element) -> list[Row]:
    found = [p.get("value") for p in case.iter("property") if p.get("name") == "clause"]
    return [(*ast.literal_eval(value), f"{case.get('classname')}::{case.get('name')}") for value in found if value]


def _outcome(case: ElementTree.Element) -> str:
    inside = {element.tag for element in case}
    return "FAILED" if inside & {"failure", "error"} else "skipped" if "skipped" in inside else "passed"


def main() -> int:
    """Print the table; returns 1 if a test does not pass on this tree, or if a clause has no row."""
    parser = argparse.ArgumentParser("python tests/kinds", description="Clause by clause: before and after.")
    parser.add_argument("--before", default=FOUND_IN, help=f"a commit (default: {FOUND_IN}); empty: only this tree")
    parser.add_argument("pytest", nargs="*", help="further arguments of pytest, after --, for example -- -k text")
    options = parser.parse_args()
    before: dict[Row, str] = {}
    if options.before:
        with tempfile.TemporaryDirectory() as folder:
            tree = Path(folder, "tree")
            git = ["git", "-C", str(ROOT), "worktree"]
            subprocess.run([*git, "add", "--detach", str(tree), options.before], check=True, capture_output=True)
            try:
                before = results_on(tree, options.pytest)
            finally:
                subprocess.run([*git, "remove", "--force", str(tree)], check=False, capture_output=True)
    after = results_on(ROOT, options.pytest)
    by_clause: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(after):
        by_clause[row[0]].append(row)
    for clause, title in CLAUSES.items():
        print(f"\n{clause}  {title}")
        for row in by_clause[clause]:
            print(f"  {before.get(row, '-'):<8} {after[row]:<8} {row[1]}  ({row[2].rpartition('.')[2]})")
        if not by_clause[clause]:
            print("  no row: nothing tests this clause")
    missing = [clause for clause in CLAUSES if not by_clause[clause]]
    wrong = [row for row, outcome in after.items() if outcome != "passed"]
    gaps = missing or "none"
    print(f"\n{len(after)} rows; {len(wrong)} do not pass on this tree; clauses without a row: {gaps}")
    return int(bool(wrong or (missing and not options.pytest)))


if __name__ == "__main__":
    sys.exit(main())
