"""YAML as a backlog needs it: all scalars as text, with places, and no document too wild to read.

Each node knows where it stands, so that a reason can say so. Nothing here guesses types: `1e3`,
`no` and `2026-04-27` are texts, and only plain `null`, `~` and nothing at all are `None`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import yaml
from yaml.composer import Composer, ComposerError
from yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, Event, ScalarEvent
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.reader import ReaderError

from chump_orchestrator.core.gap import SHOWN, on_one_line

_LOADER: type[Any] = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
"""Parses by libyaml; without it everything works, some ten times slower."""

_PARSER: type[Any] = getattr(getattr(yaml, "cyaml", None), "CParser", yaml.BaseLoader)
"""The same without what makes values of nodes."""

LEVELS = 100
"""Lists and mappings inside one another; what lies deeper is left out."""

EXPANSION = 2_000_000
EXPANSION_PER_BYTE = 4
"""Characters and nodes that aliases may add to a document: so many, and so many more for each of
its bytes. A few lines of aliases of aliases would otherwise fill the memory."""

BREATH = 500
"""Nodes after which somebody is asked whether to go on."""

MERGE = "<<"

NULLS = frozenset({"", "~", "null", "Null", "NULL"})
"""Texts that stand for nothing where they are not quoted."""

_FLOW = 40
_DEEP_INDENTATION = b"\n" + b" " * 20
_DEEP_LINE = b"-" * 10
_INDICATORS = bytes.maketrans(b"?:", b"--")
_ANCHOR = re.compile(rb"&[A-Za-z0-9_-]")
"""Without any of these a text has no aliases and is at most `LEVELS` deep: 40 levels by brackets,
and by indentation two for each column in which a line can begin and each dash in a row of them."""


class Broken(Exception):
    """The text cannot be read; `line` and `column` count from 1."""

    def __init__(self, problem: str, line: int, column: int) -> None:
        super().__init__(problem)
        self.problem = problem
        self.line = line
        self.column = column


Remark = tuple[str, int, int]
"""Something odd in a document, and the line and column of it, from 0."""


def compose(data: bytes) -> Node | None:
    """Return the one document in `data` as nodes; `None` when there is none.

    Raises `Broken` when it is no YAML, has more than one document, or grows without bounds.
    """
    try:
        root: Node | None = (_Careful if _is_wild(data) else _Nodes)(data).get_single_node()
    except yaml.MarkedYAMLError as error:
        _broken(error)
    except ReaderError as error:
        _unreadable(data, error)
    return root


def compose_carefully(data: bytes, pause: Callable[[], None] = lambda: None) -> Node | None:
    """Do the same as `compose`, never in one call that holds everything else up.

    `pause` is called every now and then; what it raises ends the reading.
    `Broken` also tells of text that is not UTF-8, and of NUL, which a torn or foreign file has.
    """
    _check_characters(data)
    try:
        root: Node | None = _Careful(data, pause).get_single_node()
    except yaml.MarkedYAMLError as error:
        _broken(error)
    except ReaderError as error:
        _unreadable(data, error)
    return root


def _check_characters(data: bytes) -> None:
    """Raise `Broken` for what is not UTF-8, and for NUL, which tells of a torn or foreign file."""
    try:
        at = data.decode("utf-8").find("\0")
        if at < 0:
            return
        at = data.find(b"\0")
        problem = "there is a NUL in it"
    except UnicodeDecodeError as error:
        at = error.start
        problem = f"byte 0x{data[at]:02x} is not UTF-8"
    before = data[:at].decode("utf-8")
    raise _broken_after(before, problem)


def _broken_after(before: str, problem: str) -> Broken:
    return Broken(problem, before.count("\n") + 1, len(before) - before.rfind("\n"))


def _broken(error: yaml.MarkedYAMLError) -> NoReturn:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    told = error.problem or "not valid YAML"
    if error.context:
        told += f" {error.context}"
        told += f" that begins in line {error.context_mark.line + 1}" if error.context_mark else ""
    raise Broken(on_one_line(told), line, column) from error


def _unreadable(data: bytes, error: ReaderError) -> NoReturn:
    # What the two parsers say of a character differs; where the first one stands does not.
    text = data.decode("utf-8", "replace")
    found = re.search(_FORBIDDEN, text)
    reason = f"character U+{ord(found[0]):04X} is not allowed" if found else str(error.reason)
    raise _broken_after(text[: found.start()] if found else "", reason) from error


_FORBIDDEN = "[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"


def value_of(node: Node, remarks: list[Remark], room: int = LEVELS) -> object:
    """Return what `node` holds as texts, lists, mappings and `None`.

    Of a key given twice the last one counts; merge keys (`<<`) add what is not given. Whatever
    is left out is told in `remarks`. `room` is how many levels deep the value may be.
    """
    if isinstance(node, ScalarNode):
        text: str = node.value
        return None if not node.style and text in NULLS else text
    if room <= 0:
        mark = node.start_mark
        remarks.append((f"nested deeper than {LEVELS} levels: left out", mark.line, mark.column))
        return ""
    if isinstance(node, SequenceNode):
        return [value_of(item, remarks, room - 1) for item in node.value]
    values: dict[str, object] = {}
    merged: list[Node] = []
    for key, value in node.value:
        if not isinstance(key, ScalarNode):
            mark = key.start_mark
            told = "a key that is a list or a mapping is left out"
            remarks.append((told, mark.line, mark.column))
            continue
        name: str = key.value
        if name == MERGE and not key.style and (sources := _merged(value)):
            merged += sources
            continue
        if name in values:
            mark = key.start_mark
            shown = on_one_line(name)[:SHOWN]
            told = f"key {shown} is given again; the last one counts"
            remarks.append((told, mark.line, mark.column))
        values[name] = value_of(value, remarks, room - 1)
    for source in merged:
        found = value_of(source, remarks, room)
        if isinstance(found, dict):
            for name, inherited in found.items():
                values.setdefault(name, inherited)
    return values


def _merged(value: Node) -> list[Node]:
    nodes = value.value if isinstance(value, SequenceNode) else [value]
    return nodes if all(isinstance(node, MappingNode) for node in nodes) else []


def _is_wild(data: bytes) -> bool:
    """Say whether `data` may nest deeply or have aliases."""
    return (
        data.count(b"[") + data.count(b"{") > _FLOW
        or _DEEP_INDENTATION in data
        or (b"&" in data and _ANCHOR.search(data) is not None)
        or _DEEP_LINE in data.translate(_INDICATORS, b" \t")
    )


class _Untyped:
    """Leaves the types of scalars alone."""

    def descend_resolver(self, *_: object) -> None: ...

    def ascend_resolver(self) -> None: ...

    def resolve(self, *_: object) -> str:
        return ""


_Nodes: type[Any] = type("_Nodes", (_Untyped, _PARSER), {})
"""Makes nodes all in C. It recurses there, so what it is given must not be deep."""


class _Careful(_Untyped, Composer):
    """Makes nodes of events one by one, with limits on depth and on what aliases add.

    An anchor may be given again, as YAML has it; an alias stands for the last one before it.
    """

    def __init__(self, data: bytes, pause: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self._pause = pause
        self._events: Iterator[Event] = yaml.parse(data, Loader=_LOADER)
        self._next: Event | None = None
        self._depth = 0
        self._size = 0
        self._nodes = 0
        self._left = EXPANSION + EXPANSION_PER_BYTE * len(data)
        self._sizes: dict[str, int] = {}

    def check_event(self, *kinds: type[Event]) -> bool:
        return isinstance(self.peek_event(), kinds)

    def peek_event(self) -> Event:
        if self._next is None:
            self._next = self._pruned(next(self._events))
        return self._next

    def get_event(self) -> Event:
        event = self.peek_event()
        self._next = None
        return event

    def compose_node(self, parent: Node | None, index: object) -> Node | None:  # noqa: ARG002
        event = self.peek_event()
        anchor: Any = getattr(event, "anchor", None)
        if isinstance(event, AliasEvent):
            self.get_event()
            return self._alias(anchor, event.start_mark)
        began = self._size
        self._size += 1
        self._nodes += 1
        if not self._nodes % BREATH:
            self._pause()
        if anchor is not None:
            self._sizes.pop(anchor, None)
        if isinstance(event, ScalarEvent):
            self._size += len(event.value)
            node: Node = self.compose_scalar_node(anchor)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = self.compose_sequence_node(anchor)
        else:
            node = self.compose_mapping_node(anchor)
        if anchor is not None:
            self._sizes[anchor] = self._size - began
        return node

    def _alias(self, anchor: Any, mark: Any) -> Node:  # noqa: ANN401 - the library's own kinds
        size = self._sizes.get(anchor)
        if size is None:
            problem = f"alias {anchor[:SHOWN]} stands for nothing before it"
            raise ComposerError(None, None, problem, mark)
        self._size += size
        self._left -= size
        if self._left < 0:
            raise ComposerError(None, None, "aliases make it too large", mark)
        node: Node = self.anchors[anchor]
        return node

    def _pruned(self, event: Event) -> Event:
        """Return the event, or an empty text for a whole collection that is too deep.

        Three levels more than a value may have: the document's and the list's around an entry.
        """
        if isinstance(event, CollectionEndEvent):
            self._depth -= 1
        elif isinstance(event, CollectionStartEvent):
            self._depth += 1
            if self._depth > LEVELS + 3:
                return self._skipped(event)
        return event

    def _skipped(self, start: CollectionStartEvent) -> Event:
        outside = self._depth - 1
        while self._depth > outside:
            event = next(self._events)
            if isinstance(event, CollectionStartEvent):
                self._depth += 1
            elif isinstance(event, CollectionEndEvent):
                self._depth -= 1
        mark = start.start_mark
        return ScalarEvent(start.anchor, None, (True, False), "", mark, mark, style='"')
