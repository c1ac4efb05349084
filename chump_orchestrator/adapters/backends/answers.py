"""A pull request that an agent's text names: its word alone, a reason to look at the forge."""

from __future__ import annotations

import re

from chump_orchestrator.core.tail import harmless
from chump_orchestrator.core.testimony import WORDS, Progress

_PULL = re.compile(r"(?:#|https?://[^\s/]+/\S+/pull/)?(\d{1,9})/?", re.ASCII)
_NAMED = re.compile(
    r"https?://[^\s/]{1,253}/[^\s/]{1,100}/[^\s/]{1,100}/pull/(\d{1,9})\b"
    r"|\b(?:pr|pull request)[ :*`]{0,3}#?(\d{1,9})\b",
    re.ASCII | re.IGNORECASE,
)
_ADORNMENT = " \t\r\n*`<>."


def pull_in(line: str) -> Progress | None:
    """Return the pull request that a line names and nothing else, or `None`.

    `412`, `#412` and an address that ends in `/pull/412` are such lines.
    """
    number = _only(line)
    return Progress(pull_number=number) if number else None


def pull_of(answer: str) -> int | None:
    """Return the pull request that a final answer names, `None` when it names none.

    It is all of the answer or its last line, else the last that is called one within it.
    """
    text = answer.strip()[-WORDS:]
    number = _only(text) or _only(text.rpartition("\n")[2])
    if number:
        return number
    named = [int(found[1] or found[2]) for found in _NAMED.finditer(text)]
    return next((number for number in reversed(named) if number), None)


def kept(text: str) -> str:
    """Return an agent's text as it may be stored and shown, the end of what is too long."""
    return harmless(text[-2 * WORDS :])[-WORDS:].strip()


def _only(text: str) -> int:
    found = _PULL.fullmatch(text.strip(_ADORNMENT))
    return int(found[1]) if found else 0
