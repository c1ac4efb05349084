"""The socket on which a shim is asked: JSON lines in, JSON lines and frames of output out.

Nobody who asks can hold the agent up: nothing here blocks, and what a follower is behind is read
back from the log. One that is too far behind is carried forward, and sees the gap in the offsets;
one that asked for the gist of standard error is told that instead.
"""

import _socket  # `socket` would bring `selectors` and a dozen enumerations along
import json
import math
import os
import sys
from collections.abc import Callable

from chump_orchestrator.shim.files import SOCKET
from chump_orchestrator.shim.gist import Gist, Pace
from chump_orchestrator.shim.logs import StreamLog
from chump_orchestrator.shim.regardless import Regardless
from chump_orchestrator.shim.turns import HUNG_UP, READABLE, WRITABLE, Turns

MAX_REQUEST = 64 * 1024
MAX_CLIENTS = 64
FRAME = 64 * 1024
"""Bytes of output in one frame at most; also all that is kept in memory for a slow follower.

A gist has bounds of its own, see `shim.gist`.
"""

Answer = Callable[[dict[str, object]], dict[str, object]]
"""Answers any request but `follow`; `ValueError`, `KeyError` or `TypeError` for a bad one."""

_PEER_CREDENTIALS = (
    (_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12) if sys.platform == "linux" else (0, 1, 76)
)
"""Level, option and size: `struct ucred`, or macOS's `LOCAL_PEERCRED` with its `struct xucred`."""


class Control:
    """The listening socket and those who are connected to it."""

    def __init__(self, turns: Turns, logs: dict[str, StreamLog], answer: Answer) -> None:
        """Bind and listen in the working directory; `OSError` when that cannot be done.

        The name is relative, since a path to a socket has but 108 bytes (104 on macOS).
        """
        self.turns = turns
        self.logs = logs
        self.answer = answer
        self.gists = {"stderr": Gist()}
        self.clients: list[Client] = []
        self.farewell: dict[str, object] = {}
        self._socket, self._place = _listening()
        turns.watch(self._socket.fileno(), READABLE, self._accept)

    def mend(self) -> None:
        """Listen anew if our name in the folder has gone, or is another's by now."""
        with Regardless(OSError):
            if _identity() == self._place:
                return
        with Regardless(OSError):
            listening, place = _listening()
            self.turns.forget(self._socket.fileno())
            self._socket.close()
            self._socket, self._place = listening, place
            self.turns.watch(listening.fileno(), READABLE, self._accept)

    def offer(self, stream: str, offset: int, data: bytes) -> None:
        """Pass on what was just added to a log, to everybody who follows it."""
        if stream in self.gists:
            self.gists[stream].feed(offset, data)
        for client in [client for client in self.clients if client.follows == stream]:
            client.offer(offset, data)

    def settle(self) -> None:
        """Tell those who want the gist, and for whom it is time."""
        if self.turns.active_s >= self.settles_at():
            for client in list(self.clients):
                client.settle()

    def settles_at(self) -> float:
        """The active second at which `settle` has something to do; infinite when it has not."""
        return min((client.settles_at() for client in self.clients), default=math.inf)

    def finish(self, **farewell: object) -> None:
        """There will be no more: nobody new is let in, and followers are told where it ends.

        They are told `farewell`, too.
        """
        self.farewell = farewell
        self.turns.forget(self._socket.fileno())
        self._socket.close()
        with Regardless(OSError):
            os.unlink(SOCKET)
        for client in list(self.clients):
            client.finish()

    def _accept(self, _events: int) -> None:
        try:
            fd, _ = self._socket._accept()  # type: ignore[attr-defined]  # noqa: SLF001
        except OSError:  # gone again, or no descriptor left: the agent goes on
            return
        connection = _socket.socket(fileno=fd)
        os.set_blocking(fd, False)
        if len(self.clients) < MAX_CLIENTS and _is_ours(connection):
            self.clients.append(Client(self, connection))
        else:
            connection.close()


class Client:
    """One connection: reads requests, writes answers, follows at most one stream."""

    def __init__(self, control: Control, connection: _socket.socket) -> None:
        self.follows: str | None = None
        self._control = control
        self._connection = connection
        self._asked = b""
        self._out = memoryview(b"")
        self._offset = 0
        self._hears = True  # the peer may still ask
        self._ending = False
        self._gist: Gist | None = None  # what it wants to have where it cannot have everything
        self._pace = Pace(control.turns.active_s)
        self._watch()

    def offer(self, offset: int, data: bytes) -> None:
        """Send new output at once if everything before it has been sent; else it comes later."""
        is_next = not self._out and offset == self._offset
        if is_next and (self._gist is None or self._pace.allows(len(data), self._now)):
            self._frame(offset, data)
        else:
            self._send()

    def settle(self) -> None:
        """Send the gist of what was held back, if it is time."""
        if self._now >= self.settles_at():
            self._send()

    def settles_at(self) -> float:
        """The active second at which `settle` has something to do; infinite when it has not."""
        waits = self._gist is not None and not self._out and self._behind
        return self._pace.next_at if waits else math.inf

    @property
    def _now(self) -> float:
        return self._control.turns.active_s

    @property
    def _behind(self) -> int:
        """How many bytes of what it follows have not been sent."""
        return 0 if self.follows is None else self._control.logs[self.follows].end - self._offset

    def finish(self) -> None:
        """Say where the stream ends once all of it was sent, then close."""
        self._ending = True
        self._send()

    def _happened(self, events: int) -> None:
        if events & READABLE:
            self._receive()
        elif events & HUNG_UP:
            self._close()
        else:
            self._send()

    def _receive(self) -> None:
        try:
            data = self._connection.recv(MAX_REQUEST)
        except BlockingIOError:
            return
        except OSError:
            self._close()
            return
        if not data:  # the peer asks no more, but may still listen
            self._hears = False
            self._send()
            return
        self._asked += data
        *lines, self._asked = self._asked.split(b"\n")
        for line in lines:
            self._answer(line)
        if len(self._asked) > MAX_REQUEST:
            self._asked = b""
            self._hears = False
            self._say({"ok": False, "error": f"a request has at most {MAX_REQUEST} bytes"})
        self._send()

    def _answer(self, line: bytes) -> None:
        try:
            request = json.loads(line)
            if not isinstance(request, dict):
                raise TypeError("a request is a JSON object")
            follows = request.get("op") == "follow"
            self._say(self._follow(request) if follows else self._control.answer(request))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            self._say({"ok": False, "error": f"{type(error).__name__}: {error}"})

    def _follow(self, request: dict[str, object]) -> dict[str, object]:
        stream, offset = request["stream"], request["offset"]
        if not isinstance(stream, str) or stream not in self._control.logs:
            raise ValueError(f"no such stream: {stream!r}")
        if isinstance(offset, bool) or not isinstance(offset, int) or offset < 0:
            raise ValueError(f"no such offset: {offset!r}")
        log = self._control.logs[stream]
        self._gist = self._control.gists.get(stream) if request.get("gist") is True else None
        # What is no longer kept has a gist.
        offset = min(offset, log.end)
        self._offset = log.read(offset, 0)[0] if self._gist is None else offset
        self.follows = stream
        return {"ok": True, "offset": self._offset}

    def _say(self, answer: dict[str, object]) -> None:
        self._out = memoryview(bytes(self._out) + json.dumps(answer).encode() + b"\n")

    def _frame(self, offset: int, data: bytes) -> None:
        header = json.dumps({"offset": offset, "length": len(data)}).encode()
        self._out = memoryview(b"%b\n%b" % (header, data))
        self._offset = offset + len(data)
        self._send()

    def _frame_gist(self, gist: Gist) -> None:
        """Put what stands for everything up to now in place of it."""
        size = self._behind
        lines, begun, end = gist.since(self._offset, size)
        told = {"stands_for": size, "telling": len(lines), "begun": len(begun)}
        length = len(lines) + len(begun) + len(end)
        header = json.dumps({"offset": self._offset, "length": length, **told}).encode()
        self._out = memoryview(b"%b\n%b%b%b" % (header, lines, begun, end))
        self._offset += size
        self._pace.spend(length, self._now)

    def _send(self) -> None:
        """Send what the peer takes without waiting; one frame of what it is behind at a time."""
        if not self._out and self.follows is not None:
            log = self._control.logs[self.follows]
            if self._gist is not None:
                if self._behind and (self._ending or self._now >= self._pace.next_at):
                    self._frame_gist(self._gist)
            elif self._offset < log.end:
                offset, data = log.read(self._offset, FRAME)
                self._offset = offset
                if data:
                    self._frame(offset, data)
                    return
            if self._ending and not self._out:
                self.follows = None
                self._say({"end": True, "offset": log.end, **self._control.farewell})
        try:
            while self._out:
                self._out = self._out[self._connection.send(self._out) :]
        except BlockingIOError:
            pass
        except OSError:
            self._close()
            return
        idle = not self._out and self.follows is None
        if idle and (self._ending or not self._hears):
            self._close()
        else:
            self._watch()

    def _watch(self) -> None:
        """Wait for room if some is needed; for requests only once the last ones were answered."""
        is_paced = self._gist is not None  # what it is behind is sent when it is time
        behind = self.follows is not None and (self._ending or (not is_paced and self._behind > 0))
        events = WRITABLE if self._out or behind else READABLE if self._hears else 0
        self._control.turns.watch(self._connection.fileno(), events, self._happened)

    def _close(self) -> None:
        if self in self._control.clients:
            self._control.clients.remove(self)
        self._control.turns.forget(self._connection.fileno())
        self._connection.close()


def _listening() -> tuple[_socket.socket, tuple[int, int]]:
    """A socket that listens under our name in the working directory, and what that name is."""
    with Regardless(FileNotFoundError):
        os.unlink(SOCKET)
    listening = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        listening.bind(SOCKET)
        listening.listen(MAX_CLIENTS)
        os.set_blocking(listening.fileno(), False)
        return listening, _identity()
    except BaseException:
        listening.close()
        raise


def _identity() -> tuple[int, int]:
    found = os.lstat(SOCKET)
    return found.st_ino, found.st_ctime_ns  # what was deleted leaves its number to the next


def _is_ours(connection: _socket.socket) -> bool:
    """Whether the peer runs as the user that this shim runs as."""
    try:
        credentials = connection.getsockopt(*_PEER_CREDENTIALS)
    except OSError:
        return False
    return int.from_bytes(credentials[4:8], sys.byteorder) == os.geteuid()
