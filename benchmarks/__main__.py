"""`python -m benchmarks NAME …`: run one of the measurements."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

HERE = Path(__file__).parent


def first_line(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0]


def main() -> None:
    programs = {path.stem: path for path in sorted(HERE.glob("*.py")) if "\ndef main()" in path.read_text()}
    del programs["__main__"]
    if len(sys.argv) < 2 or sys.argv[1] not in programs:
        print("usage: python -m benchmarks NAME [options]; NAME --help has the options\n")
        for name, path in programs.items():
            print(f"  {name:<18}{first_line(path)}")
        raise SystemExit(0 if sys.argv[1:] in ([], ["--help"], ["-h"]) else 2)
    name = sys.argv.pop(1)
    sys.argv[0] = f"python -m benchmarks {name}"
    importlib.import_module(f"benchmarks.{name}").main()


if __name__ == "__main__":
    main()
