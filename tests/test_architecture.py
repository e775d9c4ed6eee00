"""Tests of the rules in docs/architecture.md: directions of imports, owners of libraries, and sizes of files."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

import pytest
from conftest import ROOT

PACKAGE = ROOT / "gan_dist"
FILES = sorted(PACKAGE.rglob("*.py"))
# The layers of the package, from the top to the bottom. A folder or file may import only from lower rows, not from its
# own row.
ROWS = [
    ["__main__"],
    ["cli", "api"],
    ["testing"],
    ["run", "evaluation", "prefetch", "register"],
    ["planning", "last_words", "as_found"],
    ["wiring"],
    ["sampling"],
    ["engine"],
    ["metrics"],
    ["data"],
    ["game", "parallel", "checkpoint", "settings", "report"],
    ["models"],
    ["kernels"],
    ["rng", "advice", "files", "place", "parts", "quiet"],
    ["errors"],
]
LEVEL = {name: level for level, row in enumerate(ROWS) for name in row}
OWNERS = {
    "accelerate": ["parallel"],
    "torch.distributed": ["parallel"],
    "wandb": ["report"],
    "omegaconf": ["settings"],
    "gan_dist.settings": ["settings", "cli", "run", "evaluation", "prefetch", "planning", "wiring", "testing"],
}
# Attributes that others read: of callbacks, of networks, and of data sets.
INTERFACE = {"name", "every_nimg", "num_features", "weights", "files", "workers", "count"}
MOST_LINES, MOST_PARAMETERS, MOST_FUNCTION, MOST_FIELDS = 300, 8, 60, 10


def _folder(path: Path) -> str:
    """The folder of the package that a file is in; for a file outside folders, its own name."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}"  # `import torch` is enough for torch.distributed


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


by_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))


@by_file
def test_imports_point_down(path: Path) -> None:
    here = _folder(path)
    if here == "__init__":
        return  # the public functions, which import what they need when they are called
    for imported in _imports(ast.parse(path.read_text())):
        there = imported.split(".")[1] if imported.startswith("gan_dist.") else here
        if there != here and there in LEVEL:
            assert LEVEL[there] > LEVEL[here], f"{imported}: {here} is not above {there}"


@by_file
def test_libraries_and_settings_have_owners(path: Path) -> None:
    for imported in _imports(ast.parse(path.read_text())):
        for library, owners in OWNERS.items():
            if imported == library or imported.startswith(f"{library}."):
                assert _folder(path) in owners, f"{imported} belongs in {' or '.join(owners)}"


@by_file
def test_text_files_name_their_encoding(path: Path) -> None:
    """Otherwise it would be the locale's, and a run could not be continued on another machine."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        owner, name = ast.unparse(node.func.value), node.func.attr
        words = [ast.unparse(argument) for argument in (*node.args, *(keyword.value for keyword in node.keywords))]
        binary = any(re.fullmatch("'[rwax+]*b[rwax+]*'", word) for word in words) or owner in ("os", "Image")
        text = name in ("read_text", "write_text", "FileHandler") or (name in ("open", "fdopen") and not binary)
        encoded = any(keyword.arg == "encoding" for keyword in node.keywords)
        assert encoded or not text, f"{owner}.{name}, line {node.lineno}"


@by_file
def test_sizes(path: Path) -> None:
    """Files, functions and parameter lists are short enough to be read at once."""
    text = path.read_text()
    assert text.count("\n") <= MOST_LINES
    for function in _functions(ast.parse(text)):
        where = f"{function.name}, line {function.lineno}"
        arguments = function.args
        names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
        assert len([name for name in names if name not in ("self", "cls")]) <= MOST_PARAMETERS, where
        assert (function.end_lineno or 0) - function.lineno + 1 <= MOST_FUNCTION, where


def _is_data_class(node: ast.AST) -> TypeGuard[ast.ClassDef]:
    return isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in node.decorator_list)


def _fields(node: ast.ClassDef) -> list[ast.AnnAssign]:
    return [item for item in node.body if isinstance(item, ast.AnnAssign)]


@by_file
def test_data_classes_are_small(path: Path) -> None:
    if _folder(path) == "settings":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if _is_data_class(node):
            assert len(_fields(node)) <= MOST_FIELDS, node.name


def test_who_is_handed_a_data_class_reads_its_fields() -> None:
    """For each field there is a file that reads it and gets the class, or a class that holds it, as an argument.

    The file that defines the class counts too. A class that nobody gets as an argument is a result, read elsewhere.
    """
    trees = {path: ast.parse(path.read_text()) for path in FILES if _folder(path) != "settings"}
    read = {path: {*_read_attributes(tree), *_texts(tree)} for path, tree in trees.items()}  # by name, or by getattr
    classes = {node.name: node for tree in trees.values() for node in ast.walk(tree) if _is_data_class(node)}
    kinds_in = {path: list(_kinds_of_parameters(tree)) for path, tree in trees.items()}
    takers = {name: {p for p, kinds in kinds_in.items() if any(name in kind for kind in kinds)} for name in classes}
    for name, node in classes.items():
        holders = {h for h, other in classes.items() if any(name in ast.unparse(f.annotation) for f in _fields(other))}
        files = set().union(takers[name], *(takers[holder] for holder in holders)) or set(trees)
        files |= {path for path, tree in trees.items() if node in tree.body}
        for field in _fields(node):
            key = ast.unparse(field.target)
            if key not in ("opt_G", "opt_D"):  # these are read as `getattr(state, f"opt_{name}")`
                assert any(key in read[path] for path in files), f"{name}.{key}"


@by_file
def test_what_a_class_is_given_it_uses(path: Path) -> None:
    """What a constructor keeps of its parameters is read by the class, and not only to construct something else."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ClassDef) or _folder(path) == "models":  # its attributes are what others read
            continue
        given = {a.arg for f in _functions(node) if f.name == "__init__" for a in (*f.args.args, *f.args.kwonlyargs)}
        kept = {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)}
        handed = [
            argument.attr
            for call in ast.walk(node)
            if isinstance(call, ast.Call) and ast.unparse(call.func)[:1].isupper()
            for argument in (*call.args, *(keyword.value for keyword in call.keywords))
            if isinstance(argument, ast.Attribute)
        ]
        read = _read_attributes(node)
        for name in (given & kept) - INTERFACE:
            assert read.count(name) > handed.count(name), f"{node.name}.{name}"


@by_file
def test_no_function_only_forwards(path: Path) -> None:
    """None hands exactly its own arguments on to another function, unless it is a cache of it."""
    for function in _functions(ast.parse(path.read_text())):
        body = [s for s in function.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
        call = getattr(body[0], "value", None) if len(body) == 1 else None
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or function.decorator_list:
            continue
        handed = [ast.unparse(a) for a in (*call.args, *(keyword.value for keyword in call.keywords))]
        assert not handed or handed != [a.arg for a in function.args.args], function.name


def _read_attributes(tree: ast.AST) -> list[str]:
    return [n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load)]


def _texts(tree: ast.AST) -> list[str]:
    return [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]


def _kinds_of_parameters(tree: ast.AST) -> Iterator[list[str]]:
    """For each function the names in the annotations of its parameters."""
    for function in _functions(tree):
        arguments = (*function.args.args, *function.args.kwonlyargs)
        yield [name for a in arguments if a.annotation for name in re.findall(r"\w+", ast.unparse(a.annotation))]


def test_the_steps_read_like_the_paper() -> None:
    """`d_step` and `g_step` have at most 50 lines each, their docstrings included."""
    tree = ast.parse((PACKAGE / "engine/step.py").read_text())
    steps = {f.name: (f.end_lineno or 0) - f.lineno + 1 for f in _functions(tree) if f.name in ("d_step", "g_step")}
    assert len(steps) == 2
    assert max(steps.values()) <= 50


MENTION = re.compile(
    r"(?<![\w/.-])(?:(?:gan_dist|tests|benchmarks|examples)/[\w/]+\.\w+|(?:configs|launch|slurm|docs)/[\w./-]*\w)"
    r"|(?<![\w./-])gan_dist(?:\.(?!__)\w+)+"
)
# A group of entry points, files that commands of the documents make, and those of CONTRIBUTING's worked examples.
MADE_LATER = {"gan_dist.loss", "gan_dist.sif", "slurm/logs", "benchmarks/reports/gpu.json"}
MADE_LATER |= {"configs/linear_digits.yaml", "gan_dist/models/linear.py"}
DOCUMENTS = [
    ROOT / "README.md",
    *(ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "slurm").iterdir()),
    *FILES,
    *sorted((ROOT / "benchmarks").glob("*.py")),
    *sorted((ROOT / "tests").glob("*.py")),
]


def _exists(mention: str) -> bool:
    if "/" in mention:
        path = ROOT / mention
        return path.exists() or path.with_suffix(".py").exists() or any(ROOT.glob(f"{mention}*"))
    parts = mention.split(".")[1:]
    for count in range(len(parts), -1, -1):
        place = PACKAGE.joinpath(*parts[:count])
        file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        if file.exists():
            rest = parts[count:]
            return not rest or re.search(rf"\b{re.escape(rest[0])}\b", file.read_text()) is not None
    return False


@pytest.mark.parametrize(
    "path", [path for path in DOCUMENTS if path.is_file()], ids=lambda path: str(path.relative_to(ROOT))
)
def test_what_is_named_exists(path: Path) -> None:
    """All paths and names of the package that documents, comments and scripts mention exist."""
    missing = {mention for mention in MENTION.findall(path.read_text()) if not _exists(mention)} - MADE_LATER
    assert missing == set()
