"""The telling lines of an agent's standard error, kept in a bounded deque (behaviour T1)."""

from __future__ import annotations

import re
from collections import deque

from chump_orchestrator.core.gap import plain

TAIL_LINES = 64
"""Lines kept per agent: enough for a traceback and its cause."""

LINE_BYTES = 8192
"""Longer lines are cut, so that a line without an end cannot fill the memory."""

WORDS = (b"error", b"warn", b"fail", b"panic")
"""What makes a line telling, in any case; it counts only in the part that is kept."""


_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])")


def harmless(text: str) -> str:
    """Return an agent's output without what would move, colour or rename a terminal."""
    return plain(_ESCAPES.sub("", text).replace("\r\n", "\n").replace("\r", "\n"))


class Tail:
    """Keeps the last lines that contain ERROR, WARN, FAIL or PANIC in any case.

    Bytes are fed as they come, torn anywhere. A line counts when it is complete, or at the end.
    """

    def __init__(self) -> None:
        self._lines: deque[bytes] = deque(maxlen=TAIL_LINES)
        self._open = b""

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the stream."""
        start = 0
        if self._open:
            first = chunk.find(b"\n")
            if first < 0:
                self._open += chunk[: LINE_BYTES - len(self._open)]
                return
            self._keep(self._open + chunk[: min(first, LINE_BYTES - len(self._open))])
            start = first + 1
        end = chunk.rfind(b"\n", start)
        if end >= 0:
            self._search(chunk, start, end)
            start = end + 1
        self._open = chunk[start : start + LINE_BYTES]

    def finish(self) -> None:
        """Take what is left as the last line."""
        self._keep(self._open)
        self._open = b""

    def gap(self) -> None:
        """Forget the open line: bytes between the last chunk and the next are missing."""
        self.finish()

    def leap(self, telling: bytes, begun: bytes) -> None:
        """Take what stands for the next bytes of the stream, which are not fed.

        `telling` are the telling lines that ended there, whole and each with its line break;
        `begun` is the beginning of the line that has not, also of one that began before.
        """
        self._open = b""
        self.feed(telling)
        self._open = begun[:LINE_BYTES]

    def lines(self) -> tuple[str, ...]:
        """Return the lines kept so far, oldest first; bytes that are not UTF-8 are replaced."""
        return tuple(line.decode("utf-8", "replace").rstrip("\r") for line in self._lines)

    def _keep(self, line: bytes) -> None:
        if _tells(line.lower()):
            self._lines.append(line)

    def _search(self, chunk: bytes, start: int, end: int) -> None:
        """Find the last telling lines of `chunk[start:end]`, which holds whole lines.

        Each word is searched backwards through all lines at once, which is some ten times faster
        than looking at every line, and stops when there are as many lines as are kept.
        """
        lowered = chunk.lower()
        places = [lowered.rfind(word, start, end) for word in WORDS]
        found: list[bytes] = []
        while len(found) < TAIL_LINES and (hit := max(places)) >= 0:
            before = lowered.rfind(b"\n", start, hit)
            line = start if before < 0 else before + 1
            after = lowered.find(b"\n", hit, end)
            cut = min(end if after < 0 else after, line + LINE_BYTES)
            if hit + len(WORDS[0]) <= cut or _tells(lowered[line:cut]):
                found.append(chunk[line:cut])
            places = [
                place if place < line else lowered.rfind(word, start, line)
                for word, place in zip(WORDS, places, strict=True)
            ]
        self._lines.extend(reversed(found))


def _tells(lowered: bytes) -> bool:
    return any(word in lowered for word in WORDS)
