"""The socket of a shim: a question and its answer, or a stream of output to follow."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path

import anyio
import anyio.to_thread
from anyio.abc import UNIXSocketStream

from chump_orchestrator.adapters.local.numbers import whole
from chump_orchestrator.adapters.local.output import Gist
from chump_orchestrator.core.errors import Unavailable
from chump_orchestrator.shim.files import SOCKET

ANSWER_S = 5.0
"""How long an answer is waited for; a shim that is not stopped needs a millisecond."""

_RECEIVE = 64 * 1024
_HEADER_LIMIT = 64 * 1024
_LONGEST_FRAME = 64 * 1024 * 1024
_LONGEST_GIST = 1024 * 1024
"""More than all lines that are kept, each as long as it may be, and the end of the stream."""

_ADDRESS_BYTES = 100
"""Longest path that fits into the address of a socket everywhere (104 bytes on macOS)."""

_OWN_DESCRIPTORS = Path("/proc/self/fd")


class _BrokenError(Exception):
    """The connection could not be made, was lost, or what came over it makes no sense."""


Take = Callable[[int, bytes], Awaitable[None]]
"""Takes bytes of a stream, and the offset that they begin at."""


async def ask(directory: Path, request: Mapping[str, object]) -> dict[str, object]:
    """Ask a shim one thing and return its answer; `Unavailable` when there is none in time."""
    try:
        with anyio.fail_after(ANSWER_S):
            async with _connected(directory) as connection:
                await connection.say(request)
                return await connection.hear()
    except TimeoutError as error:
        raise Unavailable(
            f"the shim of {directory.name} did not answer within {ANSWER_S:g} s; see whether it"
            " was stopped"
        ) from error
    except _BrokenError as error:
        raise Unavailable(f"the shim of {directory.name} cannot be asked: {error}") from error


async def listen(
    directory: Path,
    stream: str,
    offset: int,
    take: Take,
    on_open: Callable[[], None],
    leap: Callable[[Gist], None] | None = None,
) -> dict[str, object] | None:
    """Have the bytes of a stream taken from `offset` on; return what was said at its end.

    With `leap`, which takes the gist of a stretch in place of its bytes, the shim leaves out what
    comes faster than anybody reads. One of an earlier version does not know that, and tells all.

    `on_open` is called once the shim has agreed: from then on its end is noticed here. `None` when
    the connection could not be made or was lost; what was taken stays taken. When the shim no
    longer has the bytes at an offset, those that follow begin later.
    """
    try:
        async with _connected(directory) as connection:
            wish = {"gist": True} if leap is not None else {}
            await connection.say({"op": "follow", "stream": stream, "offset": offset, **wish})
            while True:
                match await connection.hear():
                    case {"end": True, **farewell}:
                        return farewell
                    case {"stands_for": _} as header if leap is not None:
                        leap(await connection.hear_gist(header))
                    case {"offset": offered, "length": long}:
                        start, length = whole(offered), whole(long, _LONGEST_FRAME)
                        if start is None or length is None:
                            return None
                        await connection.pass_on(start, length, take)
                    case {"ok": True}:
                        on_open()
                    case _:
                        return None
    except _BrokenError:
        return None


class _Connection:
    """JSON lines, some of them followed by bytes of a stream."""

    def __init__(self, socket: UNIXSocketStream) -> None:
        self._socket = socket
        self._heard = b""

    async def say(self, request: Mapping[str, object]) -> None:
        try:
            await self._socket.send(json.dumps(request).encode() + b"\n")
        except anyio.BrokenResourceError as error:
            raise _BrokenError("the connection was lost") from error

    async def hear(self) -> dict[str, object]:
        while b"\n" not in self._heard:
            if len(self._heard) > _HEADER_LIMIT:
                raise _BrokenError("a line has no end")
            self._heard += await self._receive()
        line, _, self._heard = self._heard.partition(b"\n")
        try:
            content = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _BrokenError("a line is no JSON") from error
        if not isinstance(content, dict):
            raise _BrokenError("a line is no JSON object")
        return content

    async def pass_on(self, offset: int, length: int, take: Take) -> None:
        """Have `length` bytes taken as they come, without waiting for the last of them."""
        while length > 0:
            heard = self._heard or await self._receive()
            piece, self._heard = heard[:length], heard[length:]
            await take(offset, piece)
            offset += len(piece)
            length -= len(piece)

    async def hear_gist(self, header: Mapping[str, object]) -> Gist:
        offset, size = whole(header.get("offset")), whole(header.get("stands_for"))
        lengths = [
            whole(header.get(name), _LONGEST_GIST) for name in ("telling", "begun", "length")
        ]
        telling, begun, length = (-1 if one is None else one for one in lengths)
        if offset is None or size is None or telling < 0 or begun < 0 or telling + begun > length:
            raise _BrokenError("a gist makes no sense")
        while len(self._heard) < length:
            self._heard += await self._receive()
        told, self._heard = self._heard[:length], self._heard[length:]
        ends = telling + begun
        return Gist(offset, size, told[:telling], told[telling:ends], told[ends:])

    async def _receive(self) -> bytes:
        """Return the next bytes. Each time is a turn of the loop, also when they are there."""
        try:
            return await self._socket.receive(_RECEIVE)
        except (anyio.BrokenResourceError, anyio.EndOfStream) as error:
            raise _BrokenError("the connection was lost") from error


@contextlib.asynccontextmanager
async def _connected(directory: Path) -> AsyncIterator[_Connection]:
    async with contextlib.AsyncExitStack() as stack:
        with contextlib.ExitStack() as route:
            address = str(directory / SOCKET)
            try:
                if len(os.fsencode(address)) > _ADDRESS_BYTES:
                    address = await anyio.to_thread.run_sync(_detour, directory, route)
                socket = await anyio.connect_unix(address)
            except OSError as error:
                raise _BrokenError(error.strerror or type(error).__name__) from error
        yield _Connection(await stack.enter_async_context(socket))


def _detour(directory: Path, route: contextlib.ExitStack) -> str:
    """Return a short path to the socket, good for as long as `route` is open."""
    if _OWN_DESCRIPTORS.is_dir():
        fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
        route.callback(os.close, fd)
        return f"{_OWN_DESCRIPTORS}/{fd}/{SOCKET}"
    # Private to us, so that nobody else can lead the way elsewhere.
    folder = route.enter_context(tempfile.TemporaryDirectory(prefix="chump-"))
    (Path(folder) / "d").symlink_to(directory)
    return f"{folder}/d/{SOCKET}"
