"""The tables of parts: what a setting such as `loss.name` can name.

A part is one of this package's own, one that a user's module registers, or one that an installed package offers as an
entry point of a group of the kind's name, as `loss` in front of which stands the name of this package. Entry points are
listed without importing anything; a package is imported when one of its parts is used.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, NamedTuple

from gan_dist.errors import ConfigError, UserError

UNKNOWN = "unknown"  # in the place of a hash of code that cannot be read


class Registered(NamedTuple):
    """A part that is not of this package.

    Attributes:
        value: the part.
        code: the function or the class that makes it.
    """

    value: Any
    code: Any


TABLES: list[Table] = []  # all of them


class Table(Mapping[str, Any]):
    """All parts of one kind, by their names.

    Args:
        kind: the kind in one word, for example "loss".
        own: the parts of this package.
    """

    def __init__(self, kind: str, own: Mapping[str, Any]) -> None:
        self.kind, self.own = kind, own
        self._registered: dict[str, Registered] = {}
        TABLES.append(self)

    __eq__, __hash__ = object.__eq__, object.__hash__

    def __iter__(self) -> Iterator[str]:
        return iter({**self.own, **self._registered, **self._offered()})

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return name in self.own or name in self._registered or name in self._offered()

    def __getitem__(self, name: str) -> Any:
        if name in self.own:
            return self.own[name]
        if name not in self._registered:
            self._load(name)
        return self._registered[name].value

    @property
    def registered(self) -> dict[str, str]:
        """The names of the registered parts, and the module of each."""
        return {name: part.code.__module__ for name, part in self._registered.items()}

    def register(self, name: str, code: Any, value: Any = None) -> None:
        """Add a part. A part that is registered again from the same module replaces itself.

        Args:
            name: the name by which settings name it.
            code: the function or the class that makes it.
            value: the part; None if that is `code` itself.

        Raises:
            ConfigError: there is another part of this name.
        """
        there = self._registered.get(name)
        offered = self._offered().get(name)
        if name in self.own:
            other = "gan_dist itself"
        elif there and there.code.__module__ != code.__module__:
            other = f"the module {there.code.__module__}"
        elif offered and _top(offered.module) != _top(code.__module__):
            other = f"the installed package {_package(offered)}"
        else:
            self._registered[name] = Registered(code if value is None else value, code)
            return
        raise ConfigError(
            f"{code.__module__}: {other} has a {self.kind} of the name {name} already: choose another name"
        )

    def code(self, name: str) -> Any:
        """Return the function or the class that makes a part; for one of our own the part itself."""
        part = self[name]
        return part if name in self.own else self._registered[name].code

    def where(self, name: str) -> str:
        """Return which code a part is: its module and a hash of all files that belong to it; "" for one of our own."""
        if name in self.own:
            return ""
        code = self.code(name)
        return f"{code.__module__} {_hash(code)}"

    def _offered(self) -> dict[str, EntryPoint]:
        """The entry points of installed packages, by name."""
        return {point.name: point for point in _entry_points() if point.group == f"gan_dist.{self.kind}"}

    def _load(self, name: str) -> None:
        """Import the installed package that offers a part, which registers it.

        Raises:
            KeyError: no package offers it.
            ConfigError: the package cannot be imported, or does not register it.
        """
        point = self._offered()[name]
        offered = f"the {self.kind} {name} of the installed package {_package(point)}"
        try:
            point.load()
        except Exception as error:
            raise ConfigError(f"{offered} cannot be imported: {_said(error)}") from error
        if name not in self._registered:
            raise ConfigError(f"{offered}: {point.value} does not register it by register_{self.kind}")


def load_plugins(names: Sequence[str]) -> None:
    """Import the modules in which a user registers parts. They may lie in the current directory.

    Raises:
        ConfigError: a module cannot be imported.
    """
    if names and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    for name in names:
        try:
            importlib.import_module(name)
        except UserError:
            raise
        except Exception as error:
            missing = isinstance(error, ModuleNotFoundError) and error.name == _top(name)
            hint = "; name a Python module that is installed or lies in this directory" * missing
            hint = f"; write plugins=[{name.removesuffix('.py')}], without .py" if name.endswith(".py") else hint
            raise ConfigError(f"plugins=[{name}]: cannot be imported: {_said(error)}{hint}") from error


def describe_foreign() -> str:
    """Return a line for each kind of parts with the names of those that are not of this package, for `--help`."""
    names: dict[str, list[str]] = {}
    for point in _entry_points():
        names.setdefault(point.group.removeprefix("gan_dist."), []).append(f"{point.name} (package {_package(point)})")
    for table in TABLES:
        names.setdefault(table.kind, []).extend(f"{name} ({module})" for name, module in table.registered.items())
    return "".join(f"  {kind:<14} {', '.join(found)}\n" for kind, found in sorted(names.items()) if found)


def _said(error: Exception) -> str:
    """An error in the code of a part, with the line of that code where it happened."""
    frames = traceback.extract_tb(error.__traceback__)
    here = [f for f in frames if not f.filename.startswith("<frozen") and f.filename not in (__file__, _IMPORTING)]
    place = f", {here[-1].filename}, line {here[-1].lineno}" if here else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}{place}"


_IMPORTING = importlib.__file__


@cache  # it reads a file of each installed package
def _entry_points() -> tuple[EntryPoint, ...]:
    groups = entry_points()
    return tuple(
        point for group in groups.groups if group.startswith("gan_dist.") for point in groups.select(group=group)
    )


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.module


def _top(module: str) -> str:
    return module.partition(".")[0]


@cache  # a start asks several times; the code that runs does not change if its files do
def _hash(code: Callable[..., Any]) -> str:
    """Hash all files of the package, or the file of the module, that some code is in; in a notebook, its source."""
    top = sys.modules.get(_top(code.__module__))
    folders = list(getattr(top, "__path__", []))
    file = getattr(top, "__file__", None)
    digest = hashlib.sha256()
    if folders or file:
        for folder in map(Path, folders):
            for path in sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
                digest.update(f"{path.relative_to(folder)} ".encode() + path.read_bytes())
        if file and not folders:
            digest.update(Path(file).read_bytes())
        return digest.hexdigest()[:12]
    try:
        return hashlib.sha256(inspect.getsource(code).encode()).hexdigest()[:12]
    except (OSError, TypeError):
        return UNKNOWN
