"""Whether an installed file is as it would be written now, and whose hand it is from."""

from __future__ import annotations

import difflib
import hashlib
import re
from enum import StrEnum
from pathlib import Path

from chump_orchestrator.core.errors import ConfigError

_SEAL = re.compile(r"sha256 ([0-9a-f]{64})")


class Kind(StrEnum):
    """How an installed file relates to the one that would be written now.

    `OURS` is one that a `service install` wrote, with other values or by another version, `EDITED`
    one that was changed by hand since, and `FOREIGN` one that was never ours.
    """

    ABSENT = "absent"
    SAME = "same"
    OURS = "ours"
    EDITED = "edited"
    FOREIGN = "foreign"


def seal(text: str, comment: str) -> str:
    """Return a text with a line about its origin, and a sum by which a change is noticed.

    `comment` is a pattern of the format, `# {}` for one; the line goes below the first.
    """
    return _sealed(text, comment.format(_line(_digest(text))))


def _sealed(text: str, line: str) -> str:
    first, newline, rest = text.partition("\n")
    if first.startswith("<?xml"):
        return f"{first}{newline}{line}\n{rest}"
    return f"{line}\n{text}"


def _line(digest: str) -> str:
    return f"Written by `chump-orchestrator service install`; sha256 {digest} of the rest."


def compared(path: Path, wanted: str) -> tuple[Kind, str]:
    """Return how the file at `path` relates to the text that is wanted, and what it holds.

    `ConfigError` when it cannot be read.
    """
    try:
        text = path.read_text("utf-8", "replace")
    except FileNotFoundError:
        return Kind.ABSENT, ""
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}; mend its permissions"
        ) from error
    if text == wanted:
        return Kind.SAME, text
    line, body = _unsealed(text)
    found = _SEAL.search(line)
    if found is None:
        return Kind.FOREIGN, text
    return (Kind.OURS if found[1] == _digest(body) else Kind.EDITED), text


def unified(path: Path, there: str, wanted: str) -> str:
    """Return what would change in a file, as `diff -u` shows it."""
    return "".join(
        difflib.unified_diff(
            there.splitlines(keepends=True),
            wanted.splitlines(keepends=True),
            f"{path} (installed)" if there else "/dev/null",
            f"{path} (new)",
        )
    )


def _unsealed(text: str) -> tuple[str, str]:
    lines = text.splitlines(keepends=True)
    at = 1 if lines and lines[0].startswith("<?xml") else 0
    return "".join(lines[at : at + 1]), "".join(lines[:at] + lines[at + 1 :])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
