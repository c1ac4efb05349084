"""A connection to a program that speaks D-Bus on a socket of its own, with no bus in between.

As much of the protocol as it takes to ask a service manager for something, and no more.
"""

import _socket  # `socket` would bring `selectors` and a dozen enumerations along
import os
import time

from chump_orchestrator.shim.dbus_wire import padding, put_all, take_all

CALL, RETURN, ERROR, SIGNAL = 1, 2, 3, 4

_PATH, _INTERFACE, _MEMBER, _ERROR_NAME, _ANSWERS, _DESTINATION, _SIGNATURE = 1, 2, 3, 4, 5, 6, 8
"""Codes of the fields of a header."""

_FIXED = 16
"""Bytes of a header up to its fields, whose own length ends it."""

_LARGEST = 1024 * 1024
_LONGEST_GREETING = 4096


class Failed(Exception):
    """There is no answer, or it makes no sense; the text says why."""


class Message:
    """What came: its kind, the call it answers, its member, the name of its error."""

    def __init__(self, head: bytes, content: bytes) -> None:
        self._little = head[:1] == b"l"
        self._content = content
        with _Understood():
            (rows,), _ = take_all(head, _FIXED - 4, "a(yv)", little=self._little)
            fields: dict[object, object] = dict(rows) if isinstance(rows, list) else {}
        self.kind = head[1]
        self.answers = fields.get(_ANSWERS)
        self.member = fields.get(_MEMBER)
        self.error = fields.get(_ERROR_NAME)
        self._signature = str(fields.get(_SIGNATURE, ""))

    def body(self) -> list[object]:
        """What it says; `Failed` where that is of a type that is not known here."""
        with _Understood():
            values, _ = take_all(self._content, 0, self._signature, little=self._little)
        return values


class Connection:
    """Made by connecting; nothing takes longer than until `until`, on the monotonic clock."""

    def __init__(self, address: str, until: float) -> None:
        """Connect, known by our user id; `Failed` when nobody is there or we are not let in."""
        self._until = until
        self._serial = 0
        self._heard = b""
        with _Told():
            self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        try:
            with _Told():
                self._socket.settimeout(self._left_s())
                self._socket.connect(address)
                self._greet()
        except Failed:
            self._socket.close()
            raise

    def close(self) -> None:
        """Let go of it."""
        self._socket.close()

    def call(
        self, path: str, interface: str, member: str, signature: str, body: list[object]
    ) -> int:
        """Ask for something; the number that the answer refers to."""
        self._serial += 1
        content = bytearray()
        put_all(content, signature, body)
        fields: list[object] = [
            (_PATH, ("o", path)),
            (_INTERFACE, ("s", interface)),
            (_MEMBER, ("s", member)),
            (_DESTINATION, ("s", interface.rpartition(".")[0])),
            (_SIGNATURE, ("g", signature)),
        ]
        message = bytearray((ord("l"), CALL, 0, 1))
        put_all(message, "uua(yv)", [len(content), self._serial, fields])
        message += padding(len(message), 8)
        with _Told():
            self._socket.settimeout(self._left_s())
            self._socket.sendall(message + content)
        return self._serial

    def hear(self) -> Message:
        """The next message, whatever it is about; `Failed` when none comes in time."""
        head = self._read(_FIXED)
        little = head[:1] == b"l"
        (length, _, long), _ = take_all(head, 4, "uuu", little=little)
        if not isinstance(length, int) or not isinstance(long, int) or length + long > _LARGEST:
            raise Failed("its answer is too long")
        head += self._read(long + len(padding(long, 8)))
        return Message(head, self._read(length))

    def _greet(self) -> None:
        user = str(os.getuid()).encode().hex().encode()
        self._socket.sendall(b"\0AUTH EXTERNAL " + user + b"\r\n")
        said = b""
        while not said.endswith(b"\r\n") and len(said) < _LONGEST_GREETING:
            self._socket.settimeout(self._left_s())
            piece = self._socket.recv(1)
            if not piece:
                raise Failed("it hung up")
            said += piece
        if not said.startswith(b"OK "):
            raise Failed("it does not let us in")
        self._socket.sendall(b"BEGIN\r\n")

    def _read(self, count: int) -> bytes:
        with _Told():
            while len(self._heard) < count:
                self._socket.settimeout(self._left_s())
                piece = self._socket.recv(65536)
                if not piece:
                    raise Failed("it hung up")
                self._heard += piece
        taken, self._heard = self._heard[:count], self._heard[count:]
        return taken

    def _left_s(self) -> float:
        left_s = self._until - time.monotonic()
        if left_s <= 0:
            raise Failed("it did not answer in time")
        return left_s


class _Understood:
    """Turn what is wrong with an answer into what we say."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: object, _trace: object) -> None:
        if isinstance(error, ValueError | IndexError | KeyError | RecursionError):
            raise Failed("its answer makes no sense") from None


class _Told:
    """Turn what the system says into what we say."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: object, _trace: object) -> None:
        if isinstance(error, TimeoutError):
            raise Failed("it did not answer in time") from None
        if isinstance(error, OSError):
            raise Failed(error.strerror or type(error).__name__) from error
