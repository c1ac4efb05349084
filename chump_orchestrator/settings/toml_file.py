"""Reads one settings file: its values, the line of each, and everything that is wrong with it."""

from __future__ import annotations

import re
import stat
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import field, replace
from pathlib import Path

from chump_orchestrator.core.deferred import dataclass
from chump_orchestrator.core.gap import plain
from chump_orchestrator.core.routing import canonical_backend
from chump_orchestrator.settings.rules import Key, Wrong, escapes, shown, toml
from chump_orchestrator.settings.schema import RULES, TABLES, options_of, rule_of

LARGEST_FILE = 2**20
"""Bytes; what is larger was not written by a person."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with one key and what would be valid; without a key, with the whole file."""

    key: Key
    text: str
    line: int = 0


@dataclass(frozen=True, slots=True)
class Found:
    """What one file says: checked values, lines from 1 of all its keys, and problems.

    `backends` are the tables of backends that it has, empty ones too.
    """

    values: Mapping[Key, object] = field(default_factory=dict)
    lines: Mapping[Key, int] = field(default_factory=dict)
    backends: tuple[Key, ...] = ()
    problems: tuple[Problem, ...] = ()

    def line_of(self, key: Key) -> int:
        """Return the line of a key, or of the innermost table around it that has one."""
        return next((self.lines[k] for k in _outwards(key) if k in self.lines), 1)


def _outwards(key: Key) -> Iterator[Key]:
    for length in range(len(key), 0, -1):
        yield key[:length]


def dotted(key: Key) -> str:
    """Return a key as it is written in TOML."""
    return ".".join(part if _is_bare(part) else toml(plain(part)[:80]) for part in key)


def _is_bare(part: str) -> bool:
    return part.isascii() and part.replace("-", "_").replace("_", "0").isalnum()


def checked(key: Key, value: object) -> object:
    """Return the value of a known key; `Wrong` says what is wrong and what would be valid."""
    rule = rule_of(key)
    if rule is None:
        raise Wrong(_unknown(key))
    try:
        return rule.read(value)
    except Wrong as error:
        raise Wrong(f"{error}; write {rule.valid}") from None


def read(path: Path) -> Found:
    """Read a settings file. One that does not exist says nothing; problems are returned."""
    try:
        text = _text_of(path)
    except _Unreadable as error:
        return Found(problems=(error.problem,))
    try:
        document = tomllib.loads(text)
    except RecursionError:
        return Found(problems=(Problem((), "nested too deeply to be a settings file"),))
    except ValueError as error:
        return Found(values=_salvaged(text), problems=(_syntax(str(error), text),))
    # The first mention of a table counts, so the later ones are overwritten by it.
    lines = dict(reversed(list(_lines(f"{text}\n"))))
    lines = {_canonical(key): line for key, line in lines.items()} | lines
    values: dict[Key, object] = {}
    problems: list[Problem] = []
    _walk((), document, values, problems)
    backend = document.get("backend")
    tables = backend.items() if isinstance(backend, dict) else ()
    named = tuple(_canonical(("backend", k)) for k, table in tables if isinstance(table, dict))
    found = Found(values, lines, named)
    return replace(found, problems=tuple(replace(p, line=found.line_of(p.key)) for p in problems))


class _Unreadable(Exception):
    """The file says nothing at all, and why."""

    def __init__(self, text: str, line: int = 0) -> None:
        super().__init__(text)
        self.problem = Problem((), text, line)


def _text_of(path: Path) -> str:
    try:
        # A pipe would block for ever, so the kind of file is looked at before it is opened.
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            raise _Unreadable("this is a folder; write the settings into a file of that name")
        if not stat.S_ISREG(kind):
            raise _Unreadable("this is no ordinary file; put one in its place")
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        if path.is_symlink():
            raise _Unreadable("this link leads nowhere; mend or remove it") from None
        return ""
    except OSError as error:
        reason = error.strerror or str(error)
        raise _Unreadable(f"it cannot be read ({reason}); mend its permissions or path") from error
    if len(data) > LARGEST_FILE:
        raise _Unreadable("it is larger than 1 MiB and so no settings file; remove it")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _Unreadable("this is not UTF-8; save the file in that encoding", line) from None


def _syntax(message: str, text: str) -> Problem:
    place = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)$", message)
    if place is None:
        return Problem((), f"not valid TOML: {message}")
    what = plain(message[: place.start()])[:300]
    if place[1] is None:
        return Problem((), f"not valid TOML: {what} at the end of the file", text.count("\n") + 1)
    return Problem((), f"not valid TOML: {what} in column {place[2]}", int(place[1]))


SALVAGED: Key = ("state", "dir")
"""What is still read of a file that is no TOML: where a daemon that runs is found."""


def _salvaged(text: str) -> Mapping[Key, object]:
    """Return what counts of a file in which something else breaks the rules of TOML."""
    for part in re.split(r"^(?=[ \t]*\[)", text, flags=re.MULTILINE):
        try:
            value = tomllib.loads(part)[SALVAGED[0]][SALVAGED[1]]
            values: dict[Key, object] = {}
            _keep(SALVAGED, checked(SALVAGED, value), values)
        except (ValueError, LookupError, TypeError, RecursionError):
            continue
        return values
    return {}


def _walk(
    above: Key, table: Mapping[str, object], values: dict[Key, object], problems: list[Problem]
) -> None:
    for name, value in table.items():
        key = (*above, name)
        if _is_table(key):
            if isinstance(value, dict):
                _walk(key, value, values, problems)
            else:
                text = f"{shown(value)} is not a table; write [{dotted(key)}] with keys below it"
                problems.append(Problem(key, _unknown(key) if above == ("backend",) else text))
        else:
            try:
                _keep(key, checked(_canonical(key), value), values)
            except Wrong as error:
                problems.append(Problem(key, str(error)))


def _keep(key: Key, value: object, values: dict[Key, object]) -> None:
    rule = rule_of(_canonical(key))
    complaint = escapes(value) if rule and rule.inside and isinstance(value, str) else None
    if rule and complaint:
        raise Wrong(f"{shown(value)}: {complaint}; write {rule.valid}")
    if _canonical(key) in values:
        raise Wrong("given twice, under two names of one backend; keep one of them")
    values[_canonical(key)] = value


def _canonical(key: Key) -> Key:
    match key:
        case ("backend", name, *rest):
            return ("backend", canonical_backend(name), *rest)
        case _:
            return key


def _is_table(key: Key) -> bool:
    match key:
        case (name,):
            return name in TABLES
        case ("backend", name):
            return name != "use"
        case _:
            return key == ("routing", "classes")


def _siblings(above: Key) -> list[str]:
    match above:
        case ():
            return [*(key[0] for key in RULES if len(key) == 1), *TABLES]
        case ("backend", name):
            return list(options_of(name))
        case ("routing",):
            return ["table", "classes"]
        case _:
            return [key[-1] for key in RULES if key[:-1] == above]


def _unknown(key: Key) -> str:
    siblings = _siblings(key[:-1])
    from difflib import get_close_matches  # noqa: PLC0415 - for those who mistype

    close = get_close_matches(key[-1].lower().replace("-", "_"), siblings, n=1)
    elsewhere = [k for k in RULES if k[-1] == key[-1]]
    if close:
        return f"there is no such key; did you mean {dotted((*key[:-1], close[0]))}?"
    if elsewhere:
        meant = " or ".join(dotted(k) for k in elsewhere)
        above = " (above the first table)" if len(elsewhere[0]) == 1 else ""
        return f"there is no such key here; did you mean {meant}{above}?"
    place = f"[{dotted(key[:-1])}]" if len(key) > 1 else "the file"
    return f"there is no such key; {place} may have {', '.join(siblings)}"


_PIECE = (
    r'''(?s)(?P<long>"""(?:\\.|[^\\])*?"""+|\'\'\'.*?\'\'\'+)'''
    r"""|(?P<quoted>"(?:\\.|[^"\\\n])*"|'[^'\n]*')"""
    r"|(?P<bare>[A-Za-z0-9_-]+)|(?P<comment>\#[^\n]*)|(?P<mark>[\[\]{}=\n])|."
)


def _lines(text: str) -> Iterator[tuple[Key, int]]:
    """Yield each key and table of a valid file with its line, counted from 1.

    Keys inside inline tables and lists are not told apart from the key that holds them.
    """
    line, depth, table = 1, 0, ()  # type: tuple[int, int, Key]
    parts: list[str] = []
    header = in_value = False
    for token in re.finditer(_PIECE, text):
        kind, word = token.lastgroup, token[0]
        if kind == "mark" and in_value:
            depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(word, 0)
            in_value = word != "\n" or depth > 0
        elif kind == "mark":
            if word == "[":
                header = True
            elif word == "=" or (word == "\n" and header):
                key = (*(() if header else table), *parts)
                yield from ((k, line) for k in _outwards(key) if len(k) > len(table) or header)
                table = key if header else table
                in_value, header, depth, parts = word == "=", False, 0, []
        elif kind in ("bare", "quoted") and not in_value:
            parts.append(word if kind == "bare" else str(tomllib.loads(f"k = {word}")["k"]))
        line += word.count("\n")
