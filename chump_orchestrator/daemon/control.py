"""What an operator may ask a running daemon over its unix socket, and how it is answered.

One line of JSON asks, one line of JSON answers. Whoever asks is checked, capped and timed; nothing
that arrives here can stop the daemon or hold it up.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import anyio
import structlog
from anyio.abc import SocketAttribute, SocketListener, SocketStream, TaskStatus
from anyio.streams.buffered import BufferedByteReceiveStream

from chump_orchestrator.core.errors import ConfigError, Refused, Unavailable
from chump_orchestrator.core.gap import SHOWN, is_gap_id, on_one_line
from chump_orchestrator.daemon.address import address

PROTOCOL = 1
"""The version `v` in every answer; raised when a key changes its meaning."""

MAX_REQUEST = 64 * 1024
"""Bytes of a request at most, its newline included."""

PATIENCE_S = 10.0
"""Seconds that a client has for a request, and for taking the answer."""

LINGER_S = 1.0
"""Seconds for which what a client still sends is thrown away after its last answer."""

MAX_CLIENTS = 64
"""Connections served at once; for a further one, a silent one is closed, or else it is itself."""

ACCEPT_PAUSE_S = 1.0
"""Seconds until the next try when no connection can be accepted, for want of descriptors, say."""

OPERATIONS = ("status", "stop", "drain", "reload", "pause", "resume", "retry", "release", "why")

_PEER_CREDENTIALS = (
    (socket.SOL_SOCKET, socket.SO_PEERCRED, 12) if sys.platform == "linux" else (0, 1, 76)
)
"""Level, option and size: `struct ucred`, or macOS's `LOCAL_PEERCRED` with its `struct xucred`."""

log = structlog.get_logger()


class Operations(Protocol):
    """What the daemon does for an operator.

    Every method returns what was done in words for the operator. Each raises `Refused` when the
    answer is no, `Unavailable` when it cannot be done now, `ConfigError` when what the operator
    wrote is wrong. A client that hangs up cancels nothing.
    """

    async def status(self) -> Mapping[str, Any]:
        """Return the state in the shape of behaviour C6, without I/O, within a second (I5)."""
        ...

    async def stop(self, gap: str, *, now: bool) -> str:
        """Stop the agent of `gap` by the ladder, or with `now` by KILL; returns at once."""
        ...

    async def drain(self) -> str:
        """Start no more agents, end when those that run have ended."""
        ...

    async def reload(self) -> str:
        """Read settings and backlog anew."""
        ...

    async def pause(self, reason: str) -> str:
        """Start no more agents until `resume`; lasts over restarts."""
        ...

    async def resume(self) -> str:
        """End the pause, an operator's and the fuse's."""
        ...

    async def retry(self, gap: str, *, resume: bool = False) -> str:
        """Dispatch `gap` as soon as there is a slot, also a parked or shipped one.

        With `resume` its last session is gone on with, in its worktree.
        """
        ...

    async def release(self, gap: str) -> str:
        """Make a parked gap eligible again."""
        ...

    async def why(self, gap: str) -> str:
        """Say where `gap` stands, or why it is not picked (behaviour K5)."""
        ...


class _Malformed(Exception):
    """The request cannot be understood; the text says why."""


class _Unknown(Exception):
    """There is no such operation."""


async def serve(
    path: Path,
    operations: Operations,
    *,
    task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Answer at the socket `path` until cancelled; it is there once `task_status` says started.

    The caller holds STATE/daemon.lock, so a socket that lies there is left over, and replaced.
    Raises `Unavailable` when the socket cannot be made, `ConfigError` when a file that is no socket
    is in its place.
    """
    listening, identity = await anyio.to_thread.run_sync(_bind, path)
    try:
        async with await SocketListener.from_socket(listening) as listener:
            task_status.started()
            await _accept_all(listener, operations)
    finally:
        listening.close()
        with contextlib.suppress(OSError):
            if _identity(path) == identity:
                os.unlink(path)  # noqa: PTH108 - after a cancellation nothing can be awaited


async def _accept_all(listener: SocketListener, operations: Operations) -> None:
    async with anyio.create_task_group() as clients:
        served: dict[SocketStream, bool] = {}
        while True:
            try:
                stream = await listener.accept()
            except anyio.BrokenResourceError as error:
                log.warning("control.interrupted", error=str(error.__cause__ or error))
                await anyio.sleep(ACCEPT_PAUSE_S)
                continue
            if len(served) >= MAX_CLIENTS:
                # Whoever has said nothing for longest makes room; all at work, nobody does.
                silent = next((one for one, is_silent in served.items() if is_silent), stream)
                await silent.aclose()
                served.pop(silent, None)
                if silent is stream:
                    continue
            served[stream] = True
            clients.start_soon(_serve_one, stream, operations, served)


async def _serve_one(
    stream: SocketStream, operations: Operations, served: dict[SocketStream, bool]
) -> None:
    """Serve one client; `served` tells of each whether it is waited for."""
    try:
        async with stream:
            uid = peer_uid(stream.extra(SocketAttribute.raw_socket))  # noqa: S610 - anyio's
            if uid in (os.geteuid(), 0):
                await _converse(stream, operations, served)
            else:
                log.warning("control.denied", uid=uid)
                await _part(stream, "unauthorised", "this daemon runs as another user")
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        pass  # gone, with or without the answer
    finally:
        served.pop(stream, None)


async def _converse(
    stream: SocketStream, operations: Operations, served: dict[SocketStream, bool]
) -> None:
    lines = BufferedByteReceiveStream(stream)
    while True:
        line: bytes | None = None
        with anyio.move_on_after(PATIENCE_S):
            try:
                line = await lines.receive_until(b"\n", MAX_REQUEST)
            except (anyio.EndOfStream, anyio.IncompleteRead):
                return
            except anyio.DelimiterNotFound:
                text = f"a request has at most {MAX_REQUEST} bytes and ends with a newline"
                await _part(stream, "malformed", text)
                return
        if line is None:
            await _part(stream, "malformed", f"no request within {PATIENCE_S:g} s")
            return
        served[stream] = False
        if not await _say(stream, await _answer(line, operations)):
            return
        served.pop(stream, None)
        served[stream] = True


async def _say(stream: SocketStream, answer: bytes) -> bool:
    """Send an answer; say whether the client took all of it in time."""
    with anyio.move_on_after(PATIENCE_S):
        await stream.send(answer)
        return True
    return False


async def _part(stream: SocketStream, kind: str, text: str) -> None:
    """Say why the connection ends, so that it is heard.

    What is still unread when a socket is closed resets it, and may take the answer along.
    """
    if await _say(stream, _error(kind, text)):
        with anyio.move_on_after(LINGER_S), contextlib.suppress(anyio.EndOfStream):
            await stream.send_eof()
            while True:
                await stream.receive()


async def _answer(line: bytes, operations: Operations) -> bytes:
    """Carry out one request and return the line that answers it."""
    op = ""
    try:
        request = _parsed(line)
        op = _text(request, "op")
        answer = await _carry_out(op, request, operations)
        return _line({"ok": True, "v": PROTOCOL, **answer})
    except _Malformed as error:
        return _error("malformed", str(error))
    except _Unknown as error:
        return _error("unknown", str(error))
    except Refused as error:
        return _error("refused", str(error))
    except Unavailable as error:
        return _error("unavailable", str(error))
    except ConfigError as error:
        return _error("configuration", str(error))
    except Exception as error:
        log.exception("control.failed", op=op)
        return _error("bug", f"{type(error).__name__}: {error}")


async def _carry_out(
    op: str, request: Mapping[str, object], operations: Operations
) -> Mapping[str, object]:
    if op == "status":
        return {"status": dict(await operations.status())}
    if op not in OPERATIONS:
        known = ", ".join(OPERATIONS)
        raise _Unknown(f"there is no operation {on_one_line(op)[:SHOWN]!r}; known are {known}")
    gap = _gap(request) if op in ("stop", "retry", "release", "why") else ""
    reason = on_one_line(_text(request, "reason", "")) if op == "pause" else ""
    now = _flag(request, "now") if op == "stop" else False
    if op != "why":
        log.info("control.asked", op=op, gap=gap, reason=reason, now=now)
    match op:
        case "stop":
            message = await operations.stop(gap, now=now)
        case "drain":
            message = await operations.drain()
        case "reload":
            message = await operations.reload()
        case "pause":
            message = await operations.pause(reason)
        case "resume":
            message = await operations.resume()
        case "retry":
            message = await operations.retry(gap, resume=_flag(request, "resume"))
        case "why":
            message = await operations.why(gap)
        case _:
            message = await operations.release(gap)
    return {"message": message}


def _parsed(line: bytes) -> Mapping[str, object]:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _Malformed(f"a request is one line of JSON: {error}") from None
    if not isinstance(request, dict):
        raise _Malformed("a request is a JSON object")
    return request


def _text(request: Mapping[str, object], key: str, default: str | None = None) -> str:
    value = request.get(key, default)
    if not isinstance(value, str):
        raise _Malformed(f"{key}: expected text" + ("" if key in request else ", it is missing"))
    return value


def _gap(request: Mapping[str, object]) -> str:
    gap = _text(request, "gap")
    if not is_gap_id(gap):
        raise _Malformed(f"gap: {on_one_line(gap)[:SHOWN]!r} is no gap id")
    return gap


def _flag(request: Mapping[str, object], key: str) -> bool:
    value = request.get(key, False)
    if not isinstance(value, bool):
        raise _Malformed(f"{key}: expected true or false")
    return value


def _line(answer: Mapping[str, object]) -> bytes:
    return json.dumps(answer).encode() + b"\n"


def _error(kind: str, text: str) -> bytes:
    return _line({"ok": False, "v": PROTOCOL, "error": text, "kind": kind})


def peer_uid(connected: socket.socket) -> int | None:
    """Return the user that the other end runs as; `None` when the system does not say."""
    try:
        credentials = connected.getsockopt(*_PEER_CREDENTIALS)
    except OSError:
        return None
    return int.from_bytes(credentials[4:8], sys.byteorder)


_Identity = tuple[int, int]


def _identity(path: Path) -> _Identity:
    found = path.lstat()
    return found.st_dev, found.st_ino


def _bind(path: Path) -> tuple[socket.socket, _Identity]:
    """Return a listening socket at `path`, with what tells its file from another's."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.chmod(0o700)
        _clear(path)
        with address(path) as name:
            listening.bind(name)
        path.chmod(0o600)
        listening.listen(MAX_CLIENTS)
        listening.setblocking(False)  # noqa: FBT003 - socket's own signature
        return listening, _identity(path)
    except OSError as error:
        listening.close()
        raise Unavailable(f"the control socket {path} cannot be made: {error}") from error
    except BaseException:
        listening.close()
        raise


def _clear(path: Path) -> None:
    """Take away a socket that an earlier daemon left."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{path} is in the way of the control socket; move it elsewhere")
    path.unlink()
