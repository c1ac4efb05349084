"""The telling lines of an agent's standard error, kept in a bounded deque (behaviour T1)."""

from __future__ import annotations

from collections import deque

TAIL_LINES = 64
"""Lines kept per agent: enough for a traceback and its cause."""

LINE_BYTES = 8192
"""Longer lines are cut, so that a line without an end cannot fill the memory."""

WORDS = (b"error", b"warn", b"fail", b"panic")


class Tail:
    """Keeps the last lines that contain ERROR, WARN, FAIL or PANIC in any case.

    Bytes are fed as they come, torn anywhere. A line counts when it is complete, or at the end.
    """

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=TAIL_LINES)
        self._open = b""
        self._overflown = False

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the stream."""
        if self._overflown:
            first = chunk.find(b"\n")
            if first < 0:
                return
            self.finish()
            chunk = chunk[first + 1 :]
        data = self._open + chunk
        end = data.rfind(b"\n")
        if end >= 0:
            self._search(data[:end])
            data = data[end + 1 :]
        self._overflown = len(data) > LINE_BYTES
        self._open = data[:LINE_BYTES]

    def finish(self) -> None:
        """Take what is left as the last line."""
        self._keep(self._open)
        self._open = b""
        self._overflown = False

    def gap(self) -> None:
        """Forget the open line: bytes between the last chunk and the next are missing."""
        self.finish()

    def lines(self) -> tuple[str, ...]:
        """Return the lines kept so far, oldest first."""
        return tuple(self._lines)

    def _keep(self, line: bytes) -> None:
        cut = line[:LINE_BYTES]
        if _tells(cut.lower()):
            self._lines.append(cut.decode("utf-8", "replace").rstrip("\r"))

    def _search(self, block: bytes) -> None:
        """Find the last telling lines of a block of whole lines, walking backwards.

        Searching the whole block for each word is some ten times faster than line by line.
        """
        lowered = block.lower()
        if not _tells(lowered):
            return
        last = {word: lowered.rfind(word) for word in WORDS}
        found: list[bytes] = []
        while len(found) < TAIL_LINES:
            last = {word: at for word, at in last.items() if at >= 0}
            if not last:
                break
            hit = max(last.values())
            start = lowered.rfind(b"\n", 0, hit) + 1
            stop = lowered.find(b"\n", hit)
            cut = block[start : min(start + LINE_BYTES, stop if stop >= 0 else len(block))]
            if _tells(cut.lower()):
                found.append(cut)
            last = {
                word: at if at < start else lowered.rfind(word, 0, start)
                for word, at in last.items()
            }
        for line in reversed(found):
            self._keep(line)


def _tells(lowered: bytes) -> bool:
    return any(word in lowered for word in WORDS)
