"""Turn text into typed values, in the same way for config files and for the command line.

YAML decides about structure, quotes and comments only. What a text means is decided by the type of the setting: a text
stays as it is, and numbers are decimal. So `run.name=no` is a name, and `010` and `1:30` are not numbers.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args, get_origin

import yaml

MAX_DEPTH = 20  # lists and mappings in each other; on the command line half as many, so that a config can hold them
MAX_PARTS = 10_000  # keys and values of a document
MAX_TYPED = 2**14  # characters of a list or a mapping on the command line
MAX_NUMBER = 40  # characters of a number; a longer one is a mistake, or comes from a stranger's file


@dataclass(frozen=True)
class Scalar:
    """A text in a config: what YAML's quotes and comments leave of it.

    Attributes:
        text: its characters.
        quoted: there were quotes, so that it is a text where the schema does not name a type.
    """

    text: str
    quoted: bool = False


Node: TypeAlias = "Scalar | list[Node] | dict[str, Node]"


class _Loader(yaml.SafeLoader):
    """PyYAML's reader, which stops at the first bracket that is nested too deep. It would look far ahead otherwise."""

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:
        if self.flow_level >= MAX_DEPTH:
            raise ValueError(f"its brackets are nested more than {MAX_DEPTH} deep")
        super().fetch_flow_collection_start(TokenClass)


def read_yaml(text: str, deepest: int = MAX_DEPTH) -> Node:
    """Return the structure of a YAML document. Its scalars stay texts; an empty document is an empty mapping.

    Args:
        text: the document.
        deepest: so many lists and mappings may be in each other.

    Raises:
        ValueError: it is nested too deep, has a key twice, or has an anchor, an alias or a tag. A short document with
            aliases can need any amount of memory, and tags could name Python objects.
        yaml.YAMLError: it is not YAML.
    """
    documents: list[Any] = []
    opened: list[list[Any]] = [documents]  # the items so far of each list and mapping that is not closed yet
    for count, event in enumerate(yaml.parse(text, Loader=_Loader)):
        if count > MAX_PARTS:
            raise ValueError(f"it has more than {MAX_PARTS} keys and values")
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ValueError("YAML anchors and aliases (&name, *name) are not allowed; write the value instead")
        if tag := getattr(event, "tag", None):
            raise ValueError(f"YAML tags ({tag}) are not allowed; write the value without it")
        if isinstance(event, yaml.CollectionStartEvent):
            opened.append([])
            if len(opened) > deepest + 1:
                raise ValueError(f"its lists and mappings are nested more than {deepest} deep")
        elif isinstance(event, yaml.ScalarEvent):
            opened[-1].append(Scalar(event.value, quoted=event.style is not None))
        elif isinstance(event, yaml.CollectionEndEvent):
            items = opened.pop()
            opened[-1].append(_mapping(items) if isinstance(event, yaml.MappingEndEvent) else items)
    if len(documents) > 1:
        raise ValueError("several YAML documents; a config is one")
    return documents[0] if documents else {}


def _mapping(items: list[Any]) -> dict[str, Any]:
    """Make a mapping from a list in which keys and values take turns."""
    found: dict[str, Any] = {}
    for key, value in zip(items[::2], items[1::2]):
        if not isinstance(key, Scalar):
            raise ValueError("a key must be a word, not a list or a mapping")
        if key.text in found:
            raise ValueError(f"the key {key.text} is there twice")
        found[key.text] = value
    return found


def node_of(text: str, kind: Any) -> Node:
    """Return the structure of a value on the command line: a list [a,b] or a mapping {a: 1} if the type is one.

    Args:
        text: what the user typed after the `=`.
        kind: the setting's type; Any for a value inside a mapping, whose first character then decides.

    Raises:
        ValueError, yaml.YAMLError: the list or the mapping cannot be read.
    """
    brackets = text.lstrip().startswith(("[", "{"))
    if not brackets or (kind is not Any and get_origin(kind) not in (list, dict)):
        return Scalar(text)
    if len(text) > MAX_TYPED:
        raise ValueError(f"it has {len(text)} characters; at most {MAX_TYPED}")
    return read_yaml(text, MAX_DEPTH // 2)


def typed(node: Node, kind: Any) -> Any:
    """Return a value of the type of a setting.

    Args:
        node: the structure that was read.
        kind: the setting's type; Any for a value inside a mapping, which is typed as in JSON.

    Raises:
        ValueError: the value has another type; the message is empty, or says what is wrong.
    """
    if kind is Any:
        return _as_in_json(node)
    if get_origin(kind) is dict and isinstance(node, dict):
        return _as_in_json(node)
    if get_origin(kind) is list and isinstance(node, list):
        return [typed(item, get_args(kind)[0]) for item in node]
    if not isinstance(node, Scalar):
        raise ValueError
    if kind is str:
        return node.text
    if kind in (int, float):
        return kind(_number(node.text, whole=kind is int))
    literal = {str(choice): choice for choice in get_args(kind)} if get_origin(kind) is Literal else {}
    choices = _BOOLEANS if kind is bool else literal  # a list or a mapping has none
    if node.text in choices:
        return choices[node.text]
    raise ValueError


_WHOLE = re.compile("-?(0|[1-9][0-9]*)")
_DECIMAL = re.compile(r"-?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
_BOOLEANS = {"true": True, "True": True, "false": False, "False": False}
_WORDS = {**_BOOLEANS, "null": None}


def _number(text: str, whole: bool = False) -> int | float:
    """Return a decimal number. It must not look like another number: 010 is 8 in some languages, and 1_0 is 10."""
    if len(text) > MAX_NUMBER and _DECIMAL.fullmatch(text):
        raise ValueError(f"has {len(text)} characters; a number has at most {MAX_NUMBER}")
    if not (_WHOLE if whole else _DECIMAL).fullmatch(text):
        raise ValueError
    return int(text) if _WHOLE.fullmatch(text) else float(text)


def _as_in_json(node: Node) -> Any:
    """Return a value inside a mapping such as `model.g_args`, of which the schema does not know the type."""
    if isinstance(node, dict):
        return {key: _as_in_json(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_as_in_json(item) for item in node]
    if node.quoted or not looks_typed(node.text):
        return node.text
    if node.text in _WORDS:
        return _WORDS[node.text]
    if not _DECIMAL.fullmatch(node.text):
        given = node.text or "nothing"
        raise ValueError(f"has {given}: write true, false, null, a decimal number, or a text in quotes")
    number = _number(node.text)
    if not math.isfinite(number):
        raise ValueError(f"has {node.text}, which is too large")
    return number


def looks_typed(text: str) -> bool:
    """Return whether YAML or this program takes a text without quotes for anything but a text: 010, no, 1e3."""
    implicit = yaml.resolver.Resolver().resolve(yaml.ScalarNode, text, (True, False))
    return implicit != "tag:yaml.org,2002:str" or text in _WORDS or _DECIMAL.fullmatch(text) is not None


def shown(node: Node) -> str:
    """Return a value as it is written, for messages; a long one is cut off."""
    if isinstance(node, Scalar):
        text = node.text
    elif isinstance(node, list):
        text = f"[{', '.join(shown(item) for item in node[:20])}]"
    else:
        text = f"{{{', '.join(f'{key}: {shown(value)}' for key, value in [*node.items()][:20])}}}"
    return text if len(text) <= 100 else f"{text[:100]}…"
