"""What an agent printed, on disk within a fixed size, addressed by the offset in its stream.

The first bytes stay for good (`stderr.log`), the latest ones in a ring of four segments named by
the offset that they begin at (`stderr.000000000262144.log`). A disk that is full costs bytes, which
are counted, and never holds the agent up.
"""

import os

from chump_orchestrator.shim.regardless import Regardless

SEGMENTS = 4
"""Files in the ring; the oldest is used again for the newest bytes."""


class _Segment:
    """A stretch of the stream in a file of its own: `size` bytes from offset `start` on."""

    __slots__ = ("capacity", "fd", "name", "size", "start")

    def __init__(self, name: str, fd: int, start: int, capacity: int) -> None:
        self.name = name
        self.fd = fd
        self.start = start
        self.capacity = capacity
        self.size = 0


class StreamLog:
    """The log of one stream. `end` is the offset after its last byte, lost ones included."""

    def __init__(self, stream: str, head_bytes: int, ring_bytes: int) -> None:
        self.end = 0
        self.dropped = 0
        self._stream = stream
        self._head_bytes = head_bytes
        self._segment_bytes = max(1, ring_bytes // SEGMENTS)
        self._head: _Segment | None = None
        self._ring: list[_Segment] = []
        self._current: _Segment | None = None
        with Regardless(OSError):
            self._current = self._head = self._open(f"{stream}.log", 0, head_bytes)

    def append(self, data: bytes) -> None:
        """Add the next bytes of the stream; those that the disk refuses are counted as dropped."""
        rest = memoryview(data)
        while rest:
            try:
                segment = self._writable()
                written = os.write(segment.fd, rest[: segment.capacity - segment.size])
            except OSError:
                # A file has no holes: whatever comes next begins a segment at its own offset.
                self._current = None
                self.dropped += len(rest)
                self.end += len(rest)
                return
            segment.size += written
            self.end += written
            rest = rest[written:]

    def read(self, offset: int, limit: int) -> tuple[int, bytes]:
        """Up to `limit` bytes from `offset` on, or from the first kept ones after it.

        Gives the offset that they begin at; no bytes when nothing later is kept.
        """
        for segment in (self._head, *self._ring):
            if segment is not None and segment.start + segment.size > offset:
                start = max(offset, segment.start)
                with Regardless(OSError):
                    return start, os.pread(segment.fd, limit, start - segment.start)
        return self.end, b""

    def sync(self) -> None:
        """Have the disk keep what was written."""
        for segment in (self._head, *self._ring):
            if segment is not None:
                with Regardless(OSError):
                    os.fsync(segment.fd)

    def _open(self, name: str, start: int, capacity: int) -> _Segment:
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        return _Segment(name, os.open(name, flags, 0o600), start, capacity)

    def _writable(self) -> _Segment:
        if self._current is None or self._current.size >= self._current.capacity:
            self._current = self._next_segment()
        return self._current

    def _next_segment(self) -> _Segment:
        if self._head is None and self.end < self._head_bytes:
            self._head = self._open(f"{self._stream}.log", self.end, self._head_bytes)
            return self._head
        name = f"{self._stream}.{self.end:015d}.log"
        last = self._ring[-1] if self._ring else None
        if last is not None and last.size == 0:  # the disk was full before its first byte
            recycled = self._ring.pop()
        elif len(self._ring) == SEGMENTS:
            # Emptied and renamed: some file systems are slow to create what follows a deletion.
            recycled = self._ring.pop(0)
            self.dropped += recycled.size
        else:
            self._ring.append(self._open(name, self.end, self._segment_bytes))
            return self._ring[-1]
        try:
            os.ftruncate(recycled.fd, 0)
            os.rename(recycled.name, name)
        except OSError:
            os.close(recycled.fd)
            with Regardless(OSError):
                os.unlink(recycled.name)
            raise
        recycled.name, recycled.start, recycled.size = name, self.end, 0
        self._ring.append(recycled)
        return recycled
