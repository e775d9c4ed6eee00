"""`python slurm/sweep_line.py FILE N`: print the settings in the Nth line of a sweep file, one per line.

Quotes, backslashes, comments and blank lines mean what they mean in a shell. A line that holds no settings is not
counted. Nothing is expanded or executed: `$`, backticks and `*` stand for themselves.
"""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

# A quoted part may contain blanks and line breaks. `#` begins a comment only where a word could begin.
PART = r"""[^\s\\'"]|\\[^\n]|'[^']*'|"(?:[^"\\]|\\.)*\""""
TOKEN = re.compile(rf"(?P<end>\n)|\\\n|[^\S\n]+|#[^\n]*|(?P<word>(?:{PART})+)|(?P<wrong>.)", re.DOTALL)


def lines_of(text: str) -> list[list[str]]:
    """Return the settings in each line that holds some.

    Raises:
        ValueError: a quote is not closed; the message names the line.
    """
    lines: list[list[str]] = [[]]
    for token in TOKEN.finditer(text.replace("\r\n", "\n") + "\n"):
        if token["end"]:
            lines.append([])
        elif token["wrong"]:
            raise ValueError(f"line {text.count(chr(10), 0, token.start()) + 1}: {token['wrong']} is not closed")
        elif token["word"]:
            lines[-1] += shlex.split(token["word"])
    return [line for line in lines if line]


def main(path: str, number: int) -> int:
    """Print the settings; returns the exit status."""
    try:
        text = Path(path).read_text(encoding="utf-8", errors="surrogateescape")
        settings = lines_of(text)[number - 1 : number] if number > 0 else []
    except (OSError, ValueError) as error:
        print(f"slurm: {path}: {error.strerror if isinstance(error, OSError) else error}", file=sys.stderr)
        return 2
    if not settings or any("\n" in setting for setting in settings[0]):
        what = "a line break in a setting" if settings else f"no line {number}, counting the lines with settings"
        print(f"slurm: {path} has {what}", file=sys.stderr)
        return 2
    sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[union-attr]
    print(*settings[0], sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
