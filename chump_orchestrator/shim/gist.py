"""What stands for a stretch of standard error: its telling lines, the line begun, and its end.

A follower that wants no more than that is told all at once while an agent writes no faster than
people do, and the gist of what comes beyond. It is kept of the whole stream, so nobody has to have
listened. The rule (behaviour T1) is that of `core.tail`, said again, as a shim stands alone.
"""

from collections import deque

LINES = 64
LINE_BYTES = 8192
WORDS = (b"error", b"warn", b"fail", b"panic")
END_BYTES = 16 * 1024
"""Kept of the end of the stream."""

RATE = 512 * 1024
"""Bytes a second that a follower is told for long."""

BURST = 256 * 1024
"""Bytes that it is told beyond that, after it was told less."""

MESSAGE = 4 * 1024
"""What each message counts for beside its bytes: so many cost as much to take."""

PAUSE_S = 0.1
"""Between two gists at least."""


class Gist:
    """The gist of one stream, fed with its bytes as they come, torn anywhere."""

    def __init__(self) -> None:
        self._lines: deque[tuple[int, bytes]] = deque(maxlen=LINES)  # with where each ends
        self._begun = b""
        self._end = b""

    def feed(self, offset: int, data: bytes) -> None:
        """Take the next bytes of the stream, which begin at `offset`."""
        self._end = (self._end + data[-END_BYTES:])[-END_BYTES:]
        start = 0
        if self._begun:
            first = data.find(b"\n")
            if first < 0:
                self._begun += data[: LINE_BYTES - len(self._begun)]
                return
            line = self._begun + data[: min(first, LINE_BYTES - len(self._begun))]
            if _tells(line.lower()):
                self._lines.append((offset + first, line))
            start = first + 1
        end = data.rfind(b"\n", start)
        if end >= 0:
            self._search(offset, data, start, end)
            start = end + 1
        self._begun = data[start : start + LINE_BYTES]

    def since(self, offset: int, size: int) -> tuple[bytes, bytes, bytes]:
        """What stands for the last `size` bytes, which began at `offset`.

        Telling lines that ended there, each with a line break; the line that is begun now, maybe
        before; the bytes at the end. Lines are cut at `LINE_BYTES`.
        """
        lines = [line for ends, line in self._lines if ends >= offset]
        return b"".join([line + b"\n" for line in lines]), self._begun, self._end[-size:]

    def _search(self, offset: int, data: bytes, start: int, end: int) -> None:
        """Find the last telling lines of `data[start:end]`, which holds whole lines, from behind.

        Searching each word through all lines at once is ten times faster than looking at each line.
        """
        lowered = data.lower()
        places = [lowered.rfind(word, start, end) for word in WORDS]
        found: list[tuple[int, bytes]] = []
        while len(found) < LINES and (hit := max(places)) >= 0:
            line = max(start, lowered.rfind(b"\n", start, hit) + 1)
            after = lowered.find(b"\n", hit, end)
            after = end if after < 0 else after
            cut = min(after, line + LINE_BYTES)
            if hit + len(WORDS[0]) <= cut or _tells(lowered[line:cut]):
                found.append((offset + after, data[line:cut]))
            for number, word in enumerate(WORDS):
                if places[number] >= line:
                    places[number] = lowered.rfind(word, start, line)
        found.reverse()
        self._lines.extend(found)


def _tells(lowered: bytes) -> bool:
    return any(word in lowered for word in WORDS)


class Pace:
    """How much a follower is told: everything up to `RATE`, with bursts, then a gist at times.

    `next_at` is the active second from which on it may be told the next gist.
    """

    def __init__(self, now: float) -> None:
        self.next_at = now
        self._room: float = BURST
        self._counted_at = now

    def allows(self, size: int, now: float) -> bool:
        """Whether so many bytes may be told as they are; then they count as told."""
        self._count(now)
        if now < self.next_at or size + MESSAGE > self._room:
            return False
        self._room -= size + MESSAGE
        return True

    def spend(self, size: int, now: float) -> None:
        """Count a gist of so many bytes, whatever room there was for it."""
        self._count(now)
        self._room -= size + MESSAGE
        self.next_at = now + max(PAUSE_S, -self._room / RATE)

    def _count(self, now: float) -> None:
        self._room = min(BURST, self._room + (now - self._counted_at) * RATE)
        self._counted_at = now
