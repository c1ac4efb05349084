"""What a key may hold: numbers, durations, sizes, places, names, and what is wrong with others."""

from __future__ import annotations

import json
import math
import posixpath
import re
from collections.abc import Callable
from datetime import timedelta
from enum import StrEnum
from typing import Any

from chump_orchestrator.core.deferred import dataclass
from chump_orchestrator.core.gap import duration_from

Key = tuple[str, ...]
"""A key behind the tables it lies in. No dotted text, as quoted parts may contain dots."""

_SIZE = r"(?a)(\d{1,12}(?:\.\d{1,12})?)\s*(KiB|MiB|GiB)"
_SIZE_UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_DURATION_UNITS_MS = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1))

SIGNALS = ("INT", "TERM", "HUP", "QUIT", "USR1", "USR2")
"""What `stop_signals` may name; KILL comes at the end of the grace in any case."""


class Wrong(ValueError):
    """A value cannot be used; the message completes "KEY: …"."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What one key may hold.

    `read` turns what was written into the value, or raises `Wrong` saying what is wrong;
    `valid` completes "write …". `text` is the inverse. Values of keys `inside` name a place
    that must lie in the repository when a file names it.
    """

    read: Callable[[object], object]
    valid: str
    text: Callable[[Any], str]
    inside: bool = False


def shown(value: object) -> str:
    """Return what was found, for a message, at most a line long."""
    match value:
        case dict():
            return "a table"
        case list() | tuple():
            return "a list"
        case bool():
            return str(value).lower()
        case _:
            text = repr(value)
            return text if len(text) <= 80 else text[:77] + "…" + text[-1]  # noqa: PLR2004 - a line


def toml(value: object) -> str:
    """Return `value` as it would be written in the settings file."""
    match value:
        case timedelta():
            ms = round(value / timedelta(milliseconds=1))
            unit, size = next(u for u in _DURATION_UNITS_MS if ms % u[1] == 0)
            return f'"{ms // size}{unit}"' if ms else '"0s"'
        case tuple():
            return f"[{', '.join(toml(item) for item in value)}]"
        case bool() | int() | float():
            return str(value).lower()
        case _:
            return json.dumps(value, ensure_ascii=False)


def whole(low: int, high: int) -> Rule:
    """Return the rule for a whole number within limits, both included."""

    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise Wrong(f"{shown(value)} is not a whole number")
        if not low <= value <= high:
            raise Wrong(f"{value if abs(value) < 10**20 else 'it'} is out of range")
        return value

    return Rule(read, f"a whole number from {low} to {high}", toml)


def number(low: float, high: float) -> Rule:
    """Return the rule for a number within limits, both included."""

    def read(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Wrong(f"{shown(value)} is not a number")
        if not math.isfinite(value) or not low <= value <= high:
            raise Wrong(f"{shown(value)} is out of range")
        return float(value)

    return Rule(read, f"a number from {low:g} to {high:g}", toml)


def switch() -> Rule:
    """Return the rule for true or false."""

    def read(value: object) -> bool:
        if not isinstance(value, bool):
            raise Wrong(f"{shown(value)} is neither true nor false")
        return value

    return Rule(read, "true or false, without quotes", toml)


def duration(low: timedelta, high: timedelta = timedelta(days=3650)) -> Rule:
    """Return the rule for a duration within limits, both included (behaviour C4)."""

    def read(value: object) -> timedelta:
        found = value
        if isinstance(value, str):
            try:
                found = duration_from(value)
            except ValueError:
                raise Wrong(f"{shown(value)} is not a duration") from None
        if not isinstance(found, timedelta):
            raise Wrong(f"{shown(value)} is not a duration")
        if not low <= found <= high:
            raise Wrong(f"{toml(found).strip(chr(34))} is out of range")
        return found

    limits = f"{toml(low)} to {toml(high)}".replace('"', "")
    return Rule(read, f'a number and ms, s, m, h or d in quotes, such as "90s", {limits}', toml)


def size(low: int = 0, *, empty: bool = False) -> Rule:
    """Return the rule for a size in bytes, `low` at least, written with its unit (behaviour C4).

    With `empty`, nothing may stand there, which is read as 0.
    """

    def read(value: object) -> int:
        if empty and value == "":
            return 0
        match = re.fullmatch(_SIZE, value.strip()) if isinstance(value, str) else None
        if match is None:
            raise Wrong(f"{shown(value)} is not a size")
        found = round(float(match[1]) * _SIZE_UNITS[match[2]])
        if found < low:
            raise Wrong(f"{shown(value)} is less than {text(low)}")
        return found

    def text(value: int) -> str:
        if empty and not value:
            return '""'
        unit = next((u for u in ("GiB", "MiB") if value % _SIZE_UNITS[u] == 0), "KiB")
        return f'"{value / _SIZE_UNITS[unit]:.12g}{unit}"'

    valid = 'a number and KiB, MiB or GiB in quotes, such as "2GiB"'
    return Rule(read, f'{valid}, or ""' if empty else valid, text)


def line(valid: str, wrong: Callable[[str], str | None] = lambda _: None) -> Rule:
    """Return the rule for text without control characters; `wrong` says what else is wrong."""

    def read(value: object) -> str:
        if not isinstance(value, str):
            raise Wrong(f"{shown(value)} is not text in quotes")
        complaint = "it has control characters" if not value.isprintable() else wrong(value)
        if complaint:
            raise Wrong(f"{shown(value)}: {complaint}")
        return value

    return Rule(read, valid, toml)


def name(valid: str, pattern: str, complaint: str) -> Rule:
    """Return the rule for text that fits a pattern as a whole."""
    return line(valid, lambda text: None if re.fullmatch(pattern, text, re.ASCII) else complaint)


def word(words: type[StrEnum]) -> Rule:
    """Return the rule for one word of a closed list."""

    def read(value: object) -> StrEnum:
        if not isinstance(value, str) or value not in tuple(words):
            raise Wrong(f"{shown(value)} is not among them")
        return words(value)

    return Rule(read, " or ".join(json.dumps(word) for word in words), toml)


def words(kind: type[StrEnum], *, least: int = 0) -> Rule:
    """Return the rule for a list of words."""
    return listing(word(kind), f"{', '.join(kind)} in quotes", least=least)


def listing(item: Rule, valid: str, *, least: int = 0) -> Rule:
    """Return the rule for a list of what `item` allows."""

    def read(value: object) -> tuple[object, ...]:
        if not isinstance(value, list | tuple):
            raise Wrong(f"{shown(value)} is not a list")
        if len(value) < least:
            raise Wrong("the list is empty")
        return tuple(item.read(one) for one in value)

    return Rule(read, f"a list of {valid}", toml)


def path(valid: str, *, empty: bool = False, inside: bool = False) -> Rule:
    """Return the rule for a path; it may be absolute."""

    def wrong(text: str) -> str | None:
        if text.startswith("~"):
            return "~ is not expanded"
        if not text.strip() and not empty:
            return "it is empty"
        return None

    return Rule(line(valid, wrong).read, valid, toml, inside)


def place(what: str) -> Rule:
    """Return the rule for a path that a file may give only inside the repository."""
    return path(f"{what} relative to the repository and inside it", inside=True)


def place_or_absolute(what: str) -> Rule:
    """Return the rule for a path that may be empty: absolute, or a place in the repository."""
    valid = f'{what}, absolute, or relative to the repository and inside it, or ""'

    def wrong(text: str) -> str | None:
        if text.startswith("~"):
            return "~ is not expanded"
        return None if not text or text.startswith("/") else escapes(text)

    return line(valid, wrong)


def escapes(text: str) -> str | None:
    """Say why a place named by a settings file does not lie inside the repository, or `None`."""
    normal = posixpath.normpath(text)
    first = normal.partition("/")[0]
    if text.startswith("/"):
        return "it is absolute"
    if first == "..":
        return "it leaves the repository"
    if normal == ".":
        return "it is the repository itself"
    return "it lies in git's own folder" if first.lower() == ".git" else None


_ADDRESS = r"(?a)(?:\[([^\]]*)\]|([^:\[\]]*)):(\d{1,5})"


def listening() -> Rule:
    """Return the rule for where to listen: an address of this machine's own, or a socket's path.

    Whoever listens elsewhere tells the network what agents do here.
    """

    def wrong(text: str) -> str | None:
        if text.startswith("unix:"):
            path = text.removeprefix("unix:")
            return "~ is not expanded" if path.startswith("~") else None if path else "no path"
        if not text:
            return None
        match = re.fullmatch(_ADDRESS, text)
        if match is None:
            return "this is no address with a port"
        import ipaddress  # noqa: PLC0415 - seldom needed

        try:
            host = ipaddress.ip_address(match[1] or match[2])
        except ValueError:
            return "its host is no address" + ("; localhost has two" if "localhost" in text else "")
        if (host.version == 6) is not (match[1] is not None):  # noqa: PLR2004 - of IP
            return "an address of IPv6 goes into brackets, and no other"
        if not host.is_loopback:
            return "others than this machine could reach it"
        return None if 0 < int(match[3]) < 2**16 else "there is no such port"

    valid = '"127.0.0.1:9464", "[::1]:9464", "unix:PATH", or ""'
    return line(valid, wrong)


_BAD_IN_REF = r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|(^|/)\.|\.lock(/|$)"


def prefix_complaint(text: str) -> str | None:
    """Say why no branch can begin with `text`, or `None`."""
    whole = f"{text}x"
    bad = not text or whole.startswith(("/", "-", "refs/")) or re.search(_BAD_IN_REF, whole)
    return "no branch can begin so" if bad else None


def identity_complaint(text: str) -> str | None:
    """Say why git would not take `text` as name or address of an author, or `None`."""
    if re.search(r"[<>]", text):
        return "git takes < and > out of it"
    return "git finds no name in it" if text and not re.search(r"\w", text) else None


def commit_complaint(text: str) -> str | None:
    """Say why `text` can name no commit, or `None`."""
    bad = text.startswith("-") or re.search(r"[\s:?*\[\\]|\.\.|@\{", text)
    return "this names no commit" if bad else None


LONGEST_LABEL = 50
"""Characters that GitHub takes of a label's name."""


def pattern_complaint(text: str) -> str | None:
    """Say why `text` fits no path of a repository, or `None`."""
    if not text.strip("!/ "):
        return "it is empty"
    return "paths do not begin with ./ here" if text.lstrip("!").startswith("./") else None


def label_complaint(text: str) -> str | None:
    """Say why `text` can be no label, or `None`."""
    if not text.strip():
        return "it is empty"
    return f"it is longer than {LONGEST_LABEL} characters" if len(text) > LONGEST_LABEL else None


def signal() -> Rule:
    """Return the rule for the name of a signal, with or without SIG."""

    def read(value: object) -> str:
        name = value.upper().removeprefix("SIG") if isinstance(value, str) else ""
        if name not in SIGNALS:
            raise Wrong(f"{shown(value)} is not a signal to stop with")
        return name

    return Rule(read, "", toml)


def argument() -> Rule:
    """Return the rule for one argument of a program, whatever it contains."""

    def read(value: object) -> str:
        if not isinstance(value, str) or "\0" in value:
            raise Wrong(f"{shown(value)} is not an argument")
        return value

    return Rule(read, "", toml)
