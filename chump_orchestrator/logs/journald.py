"""Events as native records of systemd's journal, whose fields it can be searched by.

The protocol: one datagram is one record, a line `NAME=value` for each field. A value with line
breaks follows its name and its length, eight bytes, the least significant first. A record too large
for a datagram goes as a sealed file in memory, and the datagram carries a descriptor of that.
"""

from __future__ import annotations

import array
import contextlib
import errno
import json
import os
import re
import socket
import struct
import sys
from collections import deque
from collections.abc import Iterator, Mapping

from chump_orchestrator.core.gap import plain
from chump_orchestrator.logs.redaction import OF_SEVERAL_LINES
from chump_orchestrator.logs.streams import Stream

SOCKET = "/run/systemd/journal/socket"

IDENTIFIER = "chump-orchestrator"

PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
"""The priorities of syslog for our levels."""

BOUND = ("gap", "dispatch", "backend", "attempt")
"""What every event of a dispatch has, in the order in which it is told."""

LONGEST_NAME = 64
"""Bytes; the journal drops a field with a longer name."""

TAKEN = re.compile(
    "MESSAGE(_ID)?|PRIORITY|SYSLOG_.*|CODE_.*|COREDUMP_.*|ERRNO|TID|(USER_)?(UNIT|INVOCATION_ID)"
    "|OBJECT_PID|DOCUMENTATION"
)
"""Names that mean something to the journal; a field of ours that is called so gets a prefix."""

HELD_BACK = 256
"""Events that wait while the journal takes none for a moment; then the oldest are lost."""

_TOO_LARGE = (errno.EMSGSIZE, errno.ENOBUFS)


class Journal:
    """Sends events to the journal, or as lines with their priority to `otherwise`.

    The latter while there is no journal at `path`; one that is only slow never holds up anybody.
    """

    def __init__(self, otherwise: Stream, path: str = SOCKET) -> None:
        self._otherwise = otherwise
        self._path = path
        self._waiting: deque[Mapping[str, object]] = deque(maxlen=HELD_BACK)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)  # noqa: FBT003 - socket's own signature

    def __call__(self, event: Mapping[str, object]) -> None:
        """Send an event, after those that still wait."""
        self._waiting.append(event)
        while self._waiting:
            try:
                self._send(record(self._waiting[0]))
            except BlockingIOError:
                return
            except OSError:
                self._otherwise.write(with_priority(self._waiting[0]))
                self._otherwise.flush()
            self._waiting.popleft()

    def close(self) -> None:
        """Try for the last time to send what waits, and let go of the socket."""
        with contextlib.suppress(OSError):
            while self._waiting:
                self._send(record(self._waiting.popleft()))
        self._socket.close()

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendto(data, self._path)
        except OSError as error:
            if error.errno not in _TOO_LARGE:
                raise
            self._send_as_file(data)

    def _send_as_file(self, data: bytes) -> None:
        if sys.platform != "linux":
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        import fcntl  # noqa: PLC0415 - needed by a few records only

        descriptor = os.memfd_create(IDENTIFIER, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            # The journal reads no file that might change while it does.
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))
            self._socket.sendmsg([], [rights], 0, self._path)


def record(event: Mapping[str, object]) -> bytes:
    """Return an event as the datagram that the journal takes."""
    return b"".join(_encoded(name, value) for name, value in fields(event))


def fields(event: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Yield the fields of a record: what the journal knows about every one, and then ours.

    What is `None` or empty is no field.
    """
    yield "MESSAGE", message(event)
    yield "PRIORITY", str(_priority(event))
    yield "SYSLOG_IDENTIFIER", IDENTIFIER
    for key, value in event.items():
        if key != "level" and key not in OF_SEVERAL_LINES and (text := _text(value)):
            yield field_name(key), text


def field_name(key: str) -> str:
    """Return what a field is called in the journal: capitals, digits, `_`, a capital first."""
    name = re.sub(r"[^A-Z0-9_]", "_", key.upper()).lstrip("_0123456789") or "FIELD"
    if TAKEN.fullmatch(name):
        name = f"CHUMP_{name}"
    return name[:LONGEST_NAME]


def message(event: Mapping[str, object]) -> str:
    """Return an event as people read it: the gap first, all on one line but for a traceback."""
    own = (key for key in event if key not in (*BOUND, "event", "level", *OF_SEVERAL_LINES))
    facts = ((key, _text(event.get(key))) for key in (BOUND[0], *own, *BOUND[1:]))
    words = (f"{key}={_quoted(text)}" for key, text in facts if text)
    blocks = (plain(str(event[key])) for key in OF_SEVERAL_LINES if event.get(key))
    return "\n".join((" ".join((str(event.get("event", "")), *words)), *blocks))


def with_priority(event: Mapping[str, object]) -> str:
    """Return an event as lines that tell a journal, which reads the stream, their priority."""
    lines = message(event).splitlines() or [""]
    return "".join(f"<{_priority(event)}>{line}\n" for line in lines)


def _priority(event: Mapping[str, object]) -> int:
    return PRIORITIES.get(str(event.get("level")), PRIORITIES["info"])


def _encoded(name: str, value: str) -> bytes:
    data = value.encode("utf-8", "replace")
    if b"\n" not in data:
        return b"%s=%s\n" % (name.encode("ascii"), data)
    return b"%s\n%s%s\n" % (name.encode("ascii"), struct.pack("<Q", len(data)), data)


def _text(value: object) -> str:
    match value:
        case None:
            return ""
        case str():
            return plain(value)
        case bool() | list() | dict() | tuple():
            return json.dumps(value, ensure_ascii=False, default=str, skipkeys=True)
        case _:
            return plain(str(value))


def _quoted(text: str) -> str:
    return text if re.fullmatch(r"[^\s\"'=]+", text) else json.dumps(text, ensure_ascii=False)
