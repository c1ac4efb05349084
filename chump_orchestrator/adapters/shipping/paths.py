"""Which paths no agent may change: patterns like those of `.gitignore`, without regard to case.

Pure. A pattern that names a folder forbids all in it, and a link in its place, too.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class _Pattern:
    """One pattern; `allows` takes back what an earlier one forbade."""

    text: str
    matcher: re.Pattern[str]
    is_anchored: bool
    allows: bool
    parents: tuple[re.Pattern[str], ...]


class ForbiddenPaths:
    """The operator's patterns, of which the last that fits counts, and those that always count.

    A pattern with a `/` in it fits from the top of the repository on, any other fits a name at
    any depth. `*` and `?` stay within a name, `**` goes over several; `!` in front allows again.
    """

    def __init__(self, patterns: Iterable[str], always: Iterable[str] = ()) -> None:
        self._patterns = tuple(map(_pattern, patterns))
        self._always = tuple(map(_pattern, always))

    def forbidding(self, path: str, *, is_link: bool = False) -> str:
        """Return the pattern that forbids to change `path`, or empty.

        A link, or the root of another repository, stands for everything that could lie below it.
        """
        folded = _folded(path)
        parts = folded.split("/")
        places = ["/".join(parts[: n + 1]) for n in range(len(parts))]
        for patterns in (self._always, self._patterns):
            found = ""
            for pattern in patterns:
                if _fits(pattern, places, parts) or (
                    is_link and any(parent.fullmatch(folded) for parent in pattern.parents)
                ):
                    found = "" if pattern.allows else pattern.text
            if found:
                return found
        return ""


def _fits(pattern: _Pattern, places: list[str], names: list[str]) -> bool:
    wholes = places if pattern.is_anchored else names
    return any(pattern.matcher.fullmatch(whole) for whole in wholes)


def _pattern(text: str) -> _Pattern:
    allows = text.startswith("!")
    bare = _folded(text.removeprefix("!").rstrip("/"))
    is_anchored = "/" in bare
    bare = bare.removeprefix("/")
    parts = bare.split("/") if is_anchored else []
    parents = ["/".join(parts[: n + 1]) for n in range(len(parts) - 1)]
    return _Pattern(
        text=text,
        matcher=re.compile(_expression(bare)),
        is_anchored=is_anchored,
        allows=allows,
        parents=() if allows else tuple(re.compile(_expression(one)) for one in parents),
    )


def _folded(text: str) -> str:
    """Return a path as file systems see it that tell apart neither case nor forms of a letter."""
    kept = "".join(c for c in text if unicodedata.category(c) != "Cf")
    return unicodedata.normalize("NFKC", kept).casefold()


_SIGNS = {"**/": r"(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}


def _expression(glob: str) -> str:
    pieces = re.split(r"(\*\*/|\*\*|\*|\?)", glob)
    return "(?s:" + "".join(_SIGNS.get(piece) or re.escape(piece) for piece in pieces) + ")"
