"""Lines of JSON from a program that need not mean well: objects or nothing, parts by their type.

Deep nesting, huge numbers, NaN, lone surrogates and wrong types all come to nothing here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from chump_orchestrator.core.gap import SHOWN, on_one_line

Event = Mapping[str, object]

LONGEST_LINE = 2**20
"""Bytes of a line that is understood; a longer one is cut, and then no JSON any more."""

_LARGEST = 2**53
_DEAREST = 1_000_000.0
"""Larger numbers are nonsense: tokens of one agent, and dollars."""


BEGINNING = '{"type":'
"""How an event begins. Other output may stand before it on its line, of a tool for instance."""


def event(line: str) -> tuple[Event | None, str]:
    """Return the event that a line holds, if it does, and what of the line is no part of one."""
    text = line.strip()
    start = 0 if text.startswith("{") else text.find(BEGINNING)
    if start < 0:
        return None, text
    found = _object(text[start:])
    # What begins as an event and is none was torn or cut, and may quote anything.
    return found, text[:start]


def _object(text: str) -> Event | None:
    if not text.endswith("}"):
        return None
    try:
        found = json.loads(text, parse_constant=_refused)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _refused(name: str) -> object:
    raise ValueError(name)


def part(whole: object, *path: str) -> object:
    """Return what lies at a path of keys, `None` where it leads nowhere."""
    for name in path:
        if not isinstance(whole, dict):
            return None
        whole = whole.get(name)
    return whole


def text(whole: object, *path: str) -> str:
    """Return a text, empty when there is none."""
    found = part(whole, *path)
    return found if isinstance(found, str) else ""


def name(whole: object, *path: str) -> str:
    """Return a short text on one line, such as that of a tool or a session."""
    return on_one_line(text(whole, *path)[: 2 * SHOWN])[:SHOWN]


def count(whole: object, *path: str) -> int | None:
    """Return a number of things, `None` when it is no such number."""
    found = part(whole, *path)
    if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found <= _LARGEST:
        return None
    return found


def money(whole: object, *path: str) -> float | None:
    """Return an amount in dollars, `None` when it is no such amount."""
    found = part(whole, *path)
    if isinstance(found, bool) or not isinstance(found, int | float):
        return None
    return float(found) if 0 <= found <= _DEAREST and math.isfinite(found) else None


def total(whole: object, *names: str) -> int | None:
    """Return the sum of the counts under these names, `None` when there is none of them."""
    counts = [found for one in names if (found := count(whole, one)) is not None]
    return sum(counts) if counts else None


def items(whole: object, *path: str) -> list[Event]:
    """Return the objects of a list, less whatever else is in it."""
    found = part(whole, *path)
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
