"""An entry as nearly all are written, read at a third of the cost of a parser of all of YAML.

A mapping in block style whose values are texts on one line, in quotes or not, lists of such, or
`|` blocks. What is not provably that is not read here; what is means what the parser would say.
"""

from __future__ import annotations

import re
from functools import lru_cache

from chump_orchestrator.adapters.yaml_nodes import NULLS

_SEEN = bytes([0x0A, *range(0x20, 0x7F)])

_FIRST = "[A-Za-z0-9_/(]"
# Neither `: ` nor ` #` is in it, nor a blank at its end.
_BARE = _FIRST + r"[^:#\n]*(?:(?::(?![ \n])|(?<! )#)[^:#\n]*)*(?<! )"
_DOUBLY, _SINGLY = r"[^\"\\\n]*", r"[^'\n]*"
_ITEM = re.compile(rf" *- (?:({_BARE})|\"({_DOUBLY})\"|'({_SINGLY})')\n+")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*", re.ASCII)

_BARE_TEXT, _DOUBLE, _SINGLE, _FLOW, _BLOCK, _LIST = 2, 3, 4, 5, 6, 8
"""Groups of a field, after its key; the two that are missing are indentations."""


@lru_cache(maxsize=16)
def _field(column: int) -> re.Pattern[str]:
    """Return what matches a whole field of a mapping whose keys stand in this column."""
    own = f" {{{column}}}"
    item = rf"- (?:{_BARE}|\"{_DOUBLY}\"|'{_SINGLY}')\n+"
    return re.compile(
        rf"{own}([A-Za-z_][A-Za-z0-9_-]{{0,99}}):(?:"
        rf" (?:({_BARE})|\"({_DOUBLY})\"|'({_SINGLY})'|\[([^\[\]\n]*)\])\n+"
        rf"| \|\n(({own} +)[^ \n][^\n]*\n(?:\7[^\n]*\n|\n)*)"
        rf"|\n+(({own} *){item}(?:\9{item})*)?)",
        re.ASCII,
    )


def plain_entry(piece: bytes) -> tuple[dict[str, object], int] | None:
    """Return what the entry holds, and the column from 0 in which its keys stand.

    `piece` begins with the line of its dash and is UTF-8. `None` when another parser has to say.
    """
    text = piece.decode("utf-8")
    if piece.translate(None, _SEEN) and not text.replace("\n", "").isprintable():
        return None
    column = text.find("-") + 2
    if text[:column] != " " * (column - 2) + "- ":
        return None
    text = " " * column + text[column:]
    match = _field(column).match
    values: dict[str, object] = {}
    at = 0
    while at < len(text):
        field = match(text, at)
        if field is None or (key := field[1]) in values:
            return None
        at = field.end()
        kind = field.lastindex
        if kind == _BARE_TEXT:
            bare = field[_BARE_TEXT]
            values[key] = None if bare in NULLS else bare
        elif kind == _BLOCK:
            lines = field[_BLOCK].replace("\n" + field[7], "\n")[len(field[7]) :]
            values[key] = lines.rstrip("\n") + "\n"
        elif kind == _LIST:
            values[key] = [_text(item) for item in _ITEM.findall(field[_LIST])]
        elif kind == _FLOW:
            words = [word.strip(" ") for word in field[_FLOW].split(",")]
            if words == [""]:
                values[key] = []
            elif all(map(_WORD.fullmatch, words)):
                values[key] = [None if word in NULLS else word for word in words]
            else:
                return None
        elif kind == 1:
            values[key] = None
        else:
            values[key] = field[_DOUBLE] or field[_SINGLE] or ""
    return values, column


def _text(found: tuple[str, str, str]) -> str | None:
    bare, double, single = found
    return None if bare in NULLS and bare else bare or double or single
