"""What is made of an agent's output while it is followed: lines, telling lines, last words."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain

import anyio.lowlevel

from chump_orchestrator.core.tail import LINE_BYTES, Tail

LAST_BYTES = 16 * 1024
"""Kept of the end of each stream, for finding causes."""

PIECE = 64 * 1024
"""Looked at in one turn of the loop at most; takes a millisecond or two."""

_TURN_S = 0.002


@dataclass(frozen=True, slots=True)
class Gist:
    """What a shim tells in place of `size` bytes of standard error that begin at `offset`.

    `telling` are the telling lines that ended there, `begun` the line that has not, and `end` the
    last bytes of it.
    """

    offset: int
    size: int
    telling: bytes
    begun: bytes
    end: bytes


class Lines:
    """Splits a stream of bytes, torn anywhere, into lines, each cut at `longest` bytes."""

    def __init__(self, longest: int = LINE_BYTES) -> None:
        self.longest = longest
        self._open: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[str]:
        """Take the next bytes and return the lines that they complete, without their ends."""
        first, *others = chunk.split(b"\n")
        if not others:
            self._keep(first)
            return iter(())
        last = others.pop()
        self._keep(first)
        whole = [b"".join(self._open), *others]
        self._open, self._size = [], 0
        self._keep(last)
        return map(self._text, whole)

    def finish(self) -> Iterator[str]:
        """Return what is left as the last line, if anything is: the stream ends or has a hole."""
        rest = b"".join(self._open)
        self._open, self._size = [], 0
        return map(self._text, [rest] if rest else [])

    def _keep(self, piece: bytes) -> None:
        piece = piece[: self.longest - self._size]
        if piece:
            self._open.append(piece)
            self._size += len(piece)

    def _text(self, line: bytes) -> str:
        return line[: self.longest].decode("utf-8", "replace").removesuffix("\r")


class Output:
    """Both streams of an agent, as far as they were read."""

    def __init__(self) -> None:
        self.tail = Tail()
        self.lines = Lines()
        self.offsets = {"stdout": 0, "stderr": 0}
        self._last = {"stdout": b"", "stderr": b""}

    def last_words(self, *, errors_only: bool = False) -> str:
        """The ends of both streams, or of standard error, bytes that are not UTF-8 replaced."""
        ends = [self._last["stderr"]] if errors_only else self._last.values()
        return "\n".join(last.decode("utf-8", "replace") for last in ends if last)

    async def take(
        self, stream: str, offset: int, data: bytes, on_line: Callable[[str], None]
    ) -> None:
        """Take bytes of a stream that begin at `offset`, in turns that no other has to wait for.

        Once begun, all of `data` is taken, also when cancelled.
        """
        with anyio.CancelScope(shield=True):
            for start in range(0, len(data), PIECE):
                if start:
                    await anyio.lowlevel.checkpoint()
                lines = self.note(stream, offset + start, data[start : start + PIECE])
                await _pass_on(lines, on_line)

    def leap(self, stream: str, gist: Gist) -> None:
        """Take what stands for bytes of a stream of which no lines are handed out."""
        if gist.offset != self.offsets[stream]:
            self.tail.gap()
        self.offsets[stream] = gist.offset + gist.size
        self.keep_end(stream, gist.end)
        self.tail.leap(gist.telling, gist.begun)

    async def finish(self, on_line: Callable[[str], None]) -> None:
        """Take what is left of either stream as its last line."""
        self.tail.finish()
        await _pass_on(self.lines.finish(), on_line)

    def note(self, stream: str, offset: int, data: bytes) -> Iterator[str]:
        """Take bytes of a stream and return the lines of standard output that they complete."""
        is_whole = offset == self.offsets[stream]
        self.offsets[stream] = offset + len(data)
        self.keep_end(stream, data)
        if stream == "stdout":
            rest = iter(()) if is_whole else self.lines.finish()
            return chain(rest, self.lines.feed(data))
        if not is_whole:
            self.tail.gap()
        self.tail.feed(data)
        return iter(())

    def keep_end(self, stream: str, data: bytes) -> None:
        """Keep the end of a stream, of which `data` are the latest bytes."""
        self._last[stream] = (self._last[stream] + data[-LAST_BYTES:])[-LAST_BYTES:]


async def _pass_on(lines: Iterator[str], on_line: Callable[[str], None]) -> None:
    until = time.perf_counter() + _TURN_S
    for line in lines:
        on_line(line)
        if time.perf_counter() > until:
            await anyio.lowlevel.checkpoint()
            until = time.perf_counter() + _TURN_S
