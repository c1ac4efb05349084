"""One unit of work in the backlog, normalised once at the door (behaviour B1 to B3)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from enum import StrEnum

from chump_orchestrator.core.deferred import dataclass

ID_PATTERN = re.compile(r"[A-Za-z][A-Za-z0-9]*([-_][A-Za-z0-9]+)+", re.ASCII)
"""What a gap id looks like. It becomes a branch, a folder and an argument, so it is rejected,
never sanitised, when it does not fit."""

ID_LENGTH = 64
"""Longest id in characters: branch, folder and lease names are made of it."""

SHOWN = 80
"""Characters of a text that cannot be used which are shown where that is said."""

DURATION_PATTERN = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)", re.ASCII)
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

LONGEST_DURATION = timedelta(days=3650)
"""Longer durations are taken for mistakes."""


class Priority(StrEnum):
    """How urgent a gap is; `UNKNOWN` sorts last."""

    P0 = "P0"
    P1 = "P1"
    P2 = "P2"
    P3 = "P3"
    P4 = "P4"
    UNKNOWN = "unknown"


class Effort(StrEnum):
    """How much work a gap is, smallest first; `UNKNOWN` sorts last."""

    XS = "xs"
    S = "s"
    M = "m"
    L = "l"
    XL = "xl"
    UNKNOWN = "unknown"


class Kind(StrEnum):
    """Whose gap it is: a user's, or the system's own housekeeping."""

    USER = "user"
    SYSTEM = "system"


_PRIORITIES = {priority.value: priority for priority in Priority}
_EFFORTS = {effort.value: effort for effort in Effort}
_KINDS = {kind.value: kind for kind in Kind}

OPEN = "open"
DONE = "done"
PERPETUAL = "perpetual"
"""Statuses with a meaning here; every other one (`deferred`, `blocked`, …) is just not open."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the backlog something stands, lines and columns counted from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True)
class Gap:
    """One usable entry of the backlog.

    `order` is its place among all entries, from 0. Empty text means that the entry has none.
    `deadline` is the gap's own soft deadline, `None` when its effort decides (behaviour P1).
    """

    id: str
    title: str = ""
    priority: Priority = Priority.UNKNOWN
    effort: Effort = Effort.UNKNOWN
    status: str = OPEN
    kind: Kind = Kind.USER
    depends_on: tuple[str, ...] = ()
    closed_date: date | None = None
    auto_dispatch_ok: bool = False
    deadline: timedelta | None = None
    paths: tuple[str, ...] = ()
    description: str = ""
    acceptance: tuple[str, ...] = ()
    declared_domain: str = ""
    order: int = 0
    place: Place = Place("", 0, 0)

    @property
    def slug(self) -> str:
        """The id as it appears in branch and folder names (behaviour D1)."""
        return slug_of(self.id)

    @property
    def domain(self) -> str:
        """The id up to its first `-`, in capitals (behaviour K3)."""
        return domain_of(self.id)

    @property
    def is_open(self) -> bool:
        """Whether the backlog asks for this gap to be worked on."""
        return self.status in (OPEN, PERPETUAL)

    @property
    def is_done(self) -> bool:
        """Whether the backlog says that it is finished."""
        return self.status == DONE


@dataclass(frozen=True, slots=True)
class Rejection:
    """An entry that cannot be used, and why; `id` is its text as found, or empty."""

    id: str
    reason: str
    place: Place
    status: str = ""
    slug: str = ""


@dataclass(frozen=True, slots=True)
class Notice:
    """Something in the backlog that is odd and was dealt with."""

    message: str
    place: Place


def slug_of(gap_id: str) -> str:
    """Return `gap_id` in ASCII lower case with `_` replaced by `-`."""
    return gap_id.lower().replace("_", "-")


def domain_of(gap_id: str) -> str:
    """Return `gap_id` up to its first `-`, in capitals."""
    return gap_id.partition("-")[0].upper()


def is_gap_id(text: str) -> bool:
    """Say whether `text` may be a gap id."""
    return len(text) <= ID_LENGTH and ID_PATTERN.fullmatch(text) is not None


def duration_from(text: str) -> timedelta:
    """Read a duration such as `90m`, `1.5h` or `500ms` (behaviour C4).

    Raises `ValueError`, with a message for the person who wrote it, when `text` is none.
    """
    match = DURATION_PATTERN.fullmatch(text.strip())
    shown = text[:SHOWN]
    if match is None:
        raise ValueError(
            f"{shown!r} is not a duration; write a number and ms, s, m, h or d, such as 90m"
        )
    seconds = float(match[1]) * _UNIT_S[match[2]]
    if seconds > LONGEST_DURATION.total_seconds():
        raise ValueError(f"{shown!r} is longer than ten years")
    return timedelta(seconds=seconds)


_UNSEEN = ("Cc", "Cf", "Cs", "Co")
_SEEN = bytes([*b"\n\t", *range(0x20, 0x7F)])


def plain(text: str) -> str:
    """Return `text` without control and bidirectional characters, newlines and tabs kept.

    Text of the backlog reaches terminals, prompts and logs, where such characters can hide or
    forge what a person sees.
    """
    if text.isprintable():
        return text
    if text.isascii():
        if not text.encode("ascii").translate(None, _SEEN):
            return text
    elif text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in _UNSEEN)


def on_one_line(text: str) -> str:
    """Return `text` plain, its line breaks and tabs made blanks, none at its ends."""
    if text.isprintable():
        return text.strip()
    return plain(" ".join(text.splitlines())).replace("\t", " ").strip()


def is_null(text: str) -> bool:
    """Say whether `text` is what YAML writes for nothing, as a base loader hands it over."""
    return text.strip() in ("", "~", "null", "Null", "NULL")


_TYPE_NAMES = {str: "text", list: "a list", dict: "a mapping", type(None): "null"}


class _Wrong(Exception):
    """A field has a type that cannot be used."""


def read_gap(entry: object, *, order: int, place: Place) -> Gap | Rejection:
    """Turn one entry of the backlog, all of its scalars as text, into a `Gap`.

    `entry` holds strings, lists, mappings and `None` only, as a YAML base loader gives them. An
    entry that cannot be used comes back as a `Rejection` with the reason (behaviour B3).
    """
    if not isinstance(entry, Mapping):
        return Rejection("", f"the entry is {_named(entry)}, expected a mapping", place)
    status = problem = ""
    try:
        status = _word(entry, "status").lower()
    except _Wrong as wrong:
        problem = str(wrong)
    raw_id = entry.get("id")
    if raw_id is None or (isinstance(raw_id, str) and is_null(raw_id)):
        return Rejection("", "the entry has no id", place, status)
    if not isinstance(raw_id, str):
        return Rejection("", f"bad id: expected text, found {_named(raw_id)}", place, status)
    if not is_gap_id(raw_id):
        shown = on_one_line(raw_id)[:SHOWN]
        reason = (
            f"bad id {shown!r}: expected letters and digits in parts joined by - or _, such as"
            f" INFRA-12, at most {ID_LENGTH} characters"
        )
        return Rejection(shown, reason, place, status)
    try:
        if problem:
            raise _Wrong(problem)
        return _gap(entry, raw_id, status, order, place)
    except _Wrong as wrong:
        return Rejection(raw_id, str(wrong), place, status, slug_of(raw_id))


def _gap(entry: Mapping[str, object], gap_id: str, status: str, order: int, place: Place) -> Gap:
    kind = _word(entry, "kind").lower() or Kind.USER
    if kind not in _KINDS:
        raise _Wrong(f"kind: {kind[:SHOWN]!r} is neither user nor system")
    depends_on = _texts(entry, "depends_on")
    if gap_id in depends_on:
        raise _Wrong("depends_on: the gap depends on itself")
    return Gap(
        id=gap_id,
        title=on_one_line(_text(entry, "title")),
        priority=_PRIORITIES.get(_word(entry, "priority").upper(), Priority.UNKNOWN),
        effort=_EFFORTS.get(_word(entry, "effort").lower(), Effort.UNKNOWN),
        status=status,
        kind=_KINDS[kind],
        depends_on=depends_on,
        closed_date=_date(entry, "closed_date"),
        auto_dispatch_ok=_flag(entry, "auto_dispatch_ok"),
        deadline=_duration(entry, "deadline"),
        paths=_texts(entry, "paths") or _texts(entry, "file_scope"),
        description=plain(_text(entry, "description")).strip(),
        acceptance=_prose(entry, "acceptance_criteria") or _prose(entry, "acceptance"),
        declared_domain=on_one_line(_word(entry, "domain")),
        order=order,
        place=place,
    )


def _named(value: object) -> str:
    return _TYPE_NAMES.get(type(value), type(value).__name__)


def _text(entry: Mapping[str, object], key: str) -> str:
    value = entry.get(key)
    if value is None:
        return ""
    if isinstance(value, str):
        return "" if is_null(value) else value
    raise _Wrong(f"{key}: expected text, found {_named(value)}")


def _word(entry: Mapping[str, object], key: str) -> str:
    text = _text(entry, key)
    return plain(text).strip() if text else ""


def _items(entry: Mapping[str, object], key: str) -> Sequence[object]:
    value = entry.get(key)
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    if isinstance(value, Sequence):
        return value
    raise _Wrong(f"{key}: expected a list of texts, found {_named(value)}")


def _cleaned(items: Sequence[str]) -> tuple[str, ...]:
    if not items:
        return ()
    cleaned = (plain(item).strip() for item in items if not is_null(item))
    return tuple(dict.fromkeys(item for item in cleaned if item))


def _texts(entry: Mapping[str, object], key: str) -> tuple[str, ...]:
    items = [item for item in _items(entry, key) if item is not None]
    texts = [item for item in items if isinstance(item, str)]
    if len(texts) < len(items):
        raise _Wrong(f"{key}: expected a list of texts, one of its items is something else")
    return _cleaned(texts)


def _prose(entry: Mapping[str, object], key: str) -> tuple[str, ...]:
    """Return a list of sentences.

    YAML takes a sentence with a colon for a mapping; that is put together again, as nobody but
    the agent reads it.
    """
    sentences: list[str] = []
    for item in _items(entry, key):
        if isinstance(item, str):
            sentences.append(item)
        elif isinstance(item, Mapping):
            sentences += (
                f"{name}: {words}" if isinstance(words, str) else f"{name}:"
                for name, words in item.items()
            )
        elif item is not None:
            raise _Wrong(f"{key}: expected a list of texts, one of its items is {_named(item)}")
    return _cleaned(sentences)


def _flag(entry: Mapping[str, object], key: str) -> bool:
    word = _word(entry, key).lower()
    if word in ("true", "yes", "on"):
        return True
    if word in ("", "false", "no", "off"):
        return False
    raise _Wrong(f"{key}: {word[:SHOWN]!r} is neither true nor false")


def _date(entry: Mapping[str, object], key: str) -> date | None:
    # Free text such as "unknown" stands in real backlogs; the gap is then undated, not unusable.
    word = _word(entry, key)
    try:
        return date.fromisoformat(word[:10]) if word else None
    except ValueError:
        return None


def _duration(entry: Mapping[str, object], key: str) -> timedelta | None:
    word = _word(entry, key)
    if not word:
        return None
    try:
        found = duration_from(word)
    except ValueError as error:
        raise _Wrong(f"{key}: {error}") from None
    if found <= timedelta(0):
        raise _Wrong(f"{key}: {word[:SHOWN]!r} leaves no time at all")
    return found
