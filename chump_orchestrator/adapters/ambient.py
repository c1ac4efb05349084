"""The stream that tools of the repository share: a line of JSON for every change of state (E1).

Whoever works in the repository appends there, and each reads the others' lines to know what goes on
beside it. Nothing depends on a line of ours: they are written by a thread of their own, kept for a
while when the disk takes none, and given up before they harm the daemon.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import queue
import stat
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from chump_orchestrator.core.gap import on_one_line
from chump_orchestrator.core.tail import harmless

if TYPE_CHECKING:
    from chump_orchestrator.core.ports import Clock

log = structlog.get_logger()

FILE = "ambient.jsonl"

MOST_BYTES = 8 * 2**20
"""From this size on the file is put aside, and a new one begun."""

OLD_FILES = 3
"""So many that were put aside are kept, the latest as `ambient.jsonl.1`."""

MOST_WAITING = 1000
"""Lines that are kept for a disk that takes none; more are counted and dropped."""

AGAIN_S, LONGEST_AGAIN_S = 1.0, 30.0
"""Between two attempts to write a line; doubles."""

IN_THE_MIDDLE_S = 0.05
"""Whoever is at writing a line has ended it after so long, or never will."""

TEXT_CHARACTERS, SHORT_CHARACTERS = 300, 20
"""Of each text in a line; the shorter one where a line would be longer than `LINE_BYTES`."""

LINE_BYTES = 4096
"""What every system appends in one piece."""

HARNESS = "fleet-dispatcher"
"""What kind of program writes these lines, by the name that readers of the stream know."""

ALERT = "ALERT"
"""What a line is called that somebody should look at; its kind says why."""

NAMES: Mapping[str, tuple[str, str]] = {
    "dispatch.launched": ("session_start", "dispatch_started"),
    "dispatch.settled": ("session_end", "dispatch_settled"),
    "dispatch.silent": (ALERT, "silent_subagent"),
    "dispatch.overdue": (ALERT, "overdue_subagent"),
    "backend.parked": (ALERT, "backend_parked"),
    "backlog.kept": (ALERT, "backlog_kept"),
    "pulls.unavailable": (ALERT, "pulls_unavailable"),
}
"""`event` and `kind` of our events' lines; both of every other are the event's own name."""


class AmbientStream:
    """Appends what it hears to the stream in `folder`.

    `session` stands in lines that are about no dispatch, `worktree` is the name of the main work
    tree, `hide` takes secrets out of texts. `hear` returns at once and never raises on account of
    the disk.
    """

    def __init__(
        self, folder: Path, clock: Clock, *, session: str, worktree: str, hide: Callable[[str], str]
    ) -> None:
        self._path = folder / FILE
        self._clock = clock
        self._session = session
        self._worktree = worktree
        self._hide = hide
        self._queue: queue.Queue[bytes | None] = queue.Queue(MOST_WAITING)
        self._thread: threading.Thread | None = None
        self._ending = threading.Event()
        self._dropped = 0

    def hear(self, event: str, fields: Mapping[str, object]) -> None:
        """Have a line written about an event of the daemon; a listener."""
        if self._dropped and self._put(self._line("events.dropped", {"count": self._dropped})):
            self._dropped = 0
        if not self._put(self._line(event, fields)):
            self._dropped += 1

    def _put(self, line: bytes) -> bool:
        try:
            self._queue.put_nowait(line)
        except queue.Full:
            return False
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="ambient", daemon=True)
            self._thread.start()
        return True

    def close(self, patience_s: float) -> None:
        """Write what is waiting, within `patience_s` seconds, and give up the rest. Blocks."""
        self._ending.set()
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)
        if self._thread is not None:
            self._thread.join(patience_s)

    def _line(self, event: str, fields: Mapping[str, object]) -> bytes:
        line = self._cut_line(event, fields, TEXT_CHARACTERS)
        if len(line) > LINE_BYTES:
            line = self._cut_line(event, fields, SHORT_CHARACTERS)
        return line

    def _cut_line(self, event: str, fields: Mapping[str, object], most: int) -> bytes:
        own_name = event.replace(".", "_")
        name, kind = NAMES.get(event, (own_name, own_name))
        if event == "dispatching.paused" and fields.get("by") != "operator":
            name = ALERT
        told = {
            # Each line names its writer's worktree; that of an agent goes by another name.
            "path" if key == "worktree" else key: self._value(value, most)
            for key, value in fields.items()
            if value is not None and value != ""
        }
        document = {
            **told,
            "ts": f"{self._clock.now():%Y-%m-%dT%H:%M:%SZ}",
            "session": str(fields.get("dispatch") or self._session),
            "worktree": self._worktree,
            "harness": HARNESS,
            "event": name,
            "kind": kind,
        }
        first = ("ts", "session", "event", "kind")
        ordered = {key: document.pop(key) for key in first} | document
        return json.dumps(ordered, separators=(",", ":")).encode() + b"\n"

    def _value(self, value: object, most: int) -> object:
        if isinstance(value, bool | int | float):
            return value
        text = on_one_line(self._hide(harmless(str(value))))
        return text if len(text) <= most else text[: most - 1] + "…"

    def _serve(self) -> None:
        """Write line after line, in the thread, until the end."""
        while (line := self._queue.get()) is not None:
            if not self._written(line) or (self._ending.is_set() and self._queue.empty()):
                return

    def _written(self, line: bytes) -> bool:
        """Write a line, as soon as that is possible; say whether it was before the end."""
        wait_s, is_told = AGAIN_S, False
        while True:
            is_last_try = self._ending.is_set()
            try:
                self._append(line)
            except OSError as error:
                if not is_told:
                    text = error.strerror or str(error)
                    log.warning("ambient.unwritten", file=str(self._path), error=text)
                is_told = True
                if is_last_try:
                    return False
                self._ending.wait(wait_s)
                wait_s = min(wait_s * 2, LONGEST_AGAIN_S)
            else:
                if is_told:
                    log.info("ambient.resumed", file=str(self._path))
                return True

    def _append(self, line: bytes) -> None:
        """Append a line in one piece, behind whole lines; `OSError` when that is not possible.

        A disk that was filled in the middle of it has part of the line, which the next one is
        kept apart from. Nothing is ever taken back: meanwhile others may have written behind it.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Neither waits for somebody to read a pipe, nor follows a link out of the folder.
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(self._path, flags, 0o644)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EINVAL, "it is no ordinary file")
            if _ends_torn(descriptor):
                line = b"\n" + line
            if os.write(descriptor, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if found.st_size + len(line) >= MOST_BYTES:
                self._put_aside(descriptor)
        finally:
            os.close(descriptor)

    def _put_aside(self, descriptor: int) -> None:
        """Begin a new file, unless somebody else is at it; every line stays in an old one.

        The lock is the one that other writers take. Those who take none and have the file open
        already write into it under its new name.
        """
        lock = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(self._path.stat(), os.fstat(descriptor)):
                    for number in range(OLD_FILES, 1, -1):
                        with contextlib.suppress(FileNotFoundError):
                            self._old(number - 1).replace(self._old(number))
                    self._path.replace(self._old(1))
        finally:
            os.close(lock)

    def _old(self, number: int) -> Path:
        return self._path.with_name(f"{FILE}.{number}")


def _ends_torn(descriptor: int) -> bool:
    """Say whether a file ends in the middle of a line, of which nobody is just writing the rest."""
    before = 0
    while size := os.fstat(descriptor).st_size:
        if os.pread(descriptor, 1, size - 1) == b"\n":
            return False
        if size == before:
            return True
        before = size
        time.sleep(IN_THE_MIDDLE_S)
    return False
