"""Streams that a log is written to and that never fail: what they cannot take, they drop."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Protocol, TextIO


class Stream(Protocol):
    """Takes text, line by line, and raises nothing."""

    def write(self, text: str) -> int:
        """Write `text`, or drop it."""
        ...

    def flush(self) -> None:
        """Let what was written go on its way, or drop it."""
        ...


class Expendable:
    """A stream that drops what it cannot write: its reader is gone, its disk full, it is closed.

    A stream of `None` takes nothing at all.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if self._stream is not None:
            with contextlib.suppress(OSError, ValueError):
                return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            with contextlib.suppress(OSError, ValueError):
                self._stream.flush()

    def isatty(self) -> bool:
        """Say whether a person may be reading along."""
        with contextlib.suppress(OSError, ValueError):
            return self._stream is not None and self._stream.isatty()
        return False

    def is_of(self, journal_stream: str) -> bool:
        """Say whether this is the very stream that `JOURNAL_STREAM` names, by device and inode.

        A variable alone says little: whoever inherited it may have been given another stream.
        """
        with contextlib.suppress(OSError, ValueError):
            if self._stream is not None and journal_stream:
                found = os.fstat(self._stream.fileno())
                return journal_stream == f"{found.st_dev}:{found.st_ino}"
        return False


class RotatingFile:
    """A file that is put aside when it is full, `path.1` being the youngest of those kept.

    All of them together, `keep` in number, hold at most `max_bytes` each. Only their owner may
    read them. A file that somebody else moved away is begun anew.
    """

    def __init__(self, path: Path, max_bytes: int, keep: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._keep = keep
        self._descriptor: int | None = None
        self._is_torn = False

    def write(self, text: str) -> int:
        data = text.encode("utf-8", "replace")
        try:
            descriptor = self._with_room_for(len(data))
            if self._is_torn:
                data = b"\n" + data
            self._is_torn = os.write(descriptor, data) < len(data)
        except OSError:
            self.close()
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Let go of the file; the next line opens it again."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = None

    def _with_room_for(self, size: int) -> int:
        """Return the descriptor of a file that takes `size` more bytes, if any file does."""
        descriptor = self._opened()
        there = os.fstat(descriptor).st_size
        if there and there + size > self._max_bytes:
            self.close()
            self._put_aside()
            descriptor = self._opened()
        return descriptor

    def _opened(self) -> int:
        if self._descriptor is not None and not self._is_in_place(self._descriptor):
            self.close()
        if self._descriptor is None:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            # Without O_NONBLOCK a pipe of that name would hold up the whole daemon.
            self._descriptor = os.open(self._path, flags | os.O_NONBLOCK, 0o600)
        return self._descriptor

    def _is_in_place(self, descriptor: int) -> bool:
        try:
            named = self._path.lstat()
        except FileNotFoundError:
            return False
        return os.path.samestat(named, os.fstat(descriptor))

    def _put_aside(self) -> None:
        names = [self._path, *(self._aside(number) for number in range(1, self._keep))]
        for older, younger in zip(reversed(names), reversed(names[:-1]), strict=False):
            with contextlib.suppress(FileNotFoundError):
                younger.replace(older)
        if self._keep == 1:
            self._path.unlink()

    def _aside(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")
