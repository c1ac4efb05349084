"""Texts as they must be written in unit files, where `%`, `$`, quotes and backslashes mean more."""

from __future__ import annotations

from collections.abc import Iterable

from chump_orchestrator.core.errors import ConfigError
from chump_orchestrator.core.gap import on_one_line

_LOWEST_PRINTABLE = " "
_DELETE = "\x7f"


def whole(text: str) -> str:
    """Return a text that is all of a line's value, such as a working directory."""
    checked(text)
    if text.endswith("\\") or text != text.strip():
        raise ConfigError(
            f"{on_one_line(text)!r} cannot stand in a unit: it ends in a backslash, or begins or"
            " ends with a blank; rename that folder"
        )
    return text.replace("%", "%%")


def word(text: str) -> str:
    """Return a text that is one of several words of a line, such as a path among paths."""
    checked(text)
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    is_plain = escaped == text and not set(text) & set(" '#;") and text
    return text if is_plain else f'"{escaped}"'


def words(texts: Iterable[str]) -> str:
    """Return several words of a line."""
    return " ".join(map(word, texts))


def command(argv: Iterable[str]) -> str:
    """Return a command line; in the words behind its program, `$` would begin a variable."""
    program, *arguments = argv
    return " ".join((word(program), *(word(one.replace("$", "$$")) for one in arguments)))


def assignment(name: str, value: str) -> str:
    """Return a variable of the environment with its value."""
    return word(f"{name}={value}")


def checked(text: str) -> str:
    """Return a text that can stand in a file of lines; `ConfigError` for any other."""
    try:
        text.encode()
    except UnicodeEncodeError:
        odd = True
    else:
        odd = any(char < _LOWEST_PRINTABLE or char == _DELETE for char in text)
    if odd:
        raise ConfigError(
            f"{on_one_line(text)!r} cannot stand in a unit: it holds control characters, or bytes"
            " that are no text; rename that folder"
        )
    return text
