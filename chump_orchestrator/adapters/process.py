"""Short helper programs (git, gh, scripts): with a time limit, in a group of their own.

Agents never run through here: their shims own them. A helper that is no longer waited for,
whatever the reason, is killed together with everything in its process group. One that is to run
on beside us ends with us, by its input.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from datetime import timedelta
from io import FileIO

import anyio
import anyio.lowlevel
import anyio.to_thread

from chump_orchestrator.adapters.starting import SHORTAGES, explained, without_manager
from chump_orchestrator.core.deferred import dataclass
from chump_orchestrator.core.errors import Refused, Unavailable

LIMIT_BYTES = 64 * 1024 * 1024
"""Most that is kept of a helper's standard output, and of its standard error."""

CHUNK_BYTES = 64 * 1024
"""Read at once; what a pipe holds on Linux."""

DRAIN_S = 0.5
"""How long the pipes are read on after the exit: a grandchild may hold them open for ever, and
what the program itself has written is there already."""

REAP_S = 5.0
"""How long a killed helper is waited for; the kernel needs longer only when a disk hangs."""

WORD = b"here\n"
"""What a helper that runs beside us is given to read, to see that it does."""


@dataclass(frozen=True, slots=True)
class Finished:
    """How a helper ended and all that it wrote; `code` is `-N` after signal `N`."""

    code: int
    out: bytes
    err: bytes


@contextlib.contextmanager
def children_watched_by_loop() -> Iterator[bool]:
    """Have the running loop itself notice the end of children meanwhile; yields whether it does.

    Python 3.11 has a thread wait for each child unless told otherwise, later versions do this by
    themselves. False where the system has no file descriptors for processes: nothing changes then.
    """
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        yield False
        return
    if sys.version_info >= (3, 12):
        yield True
        return
    with asyncio.PidfdChildWatcher() as watcher:
        watcher.attach_loop(asyncio.get_running_loop())
        # Deprecated since Python 3.12, which needs none of this.
        asyncio.set_child_watcher(watcher)  # type: ignore[deprecated]
        try:
            yield True
        finally:
            # Whatever loop comes next begins with the one that is Python's own.
            asyncio.set_child_watcher(None)  # type: ignore[deprecated, arg-type]


@dataclass(slots=True)
class _Stream:
    source: FileIO
    limit: int
    data: bytearray = field(default_factory=bytearray)
    overflowed: bool = False

    async def collect(self, scope: anyio.CancelScope) -> None:
        while True:
            chunk = self.source.read(CHUNK_BYTES)
            if chunk is None:
                await anyio.wait_readable(self.source)
                continue
            if not chunk:
                return
            if len(self.data) + len(chunk) > self.limit:
                self.overflowed = True
                scope.cancel()
                return
            self.data += chunk
            await anyio.lowlevel.checkpoint()


async def run(
    argv: Sequence[str],
    *,
    cwd: str | os.PathLike[str],
    env: Mapping[str, str],
    timeout: timedelta,  # noqa: ASYNC109 - a helper without a limit must not be writable
    feed: bytes | None = None,
    limit: int = LIMIT_BYTES,
) -> Finished:
    """Run a helper to its end and return what it wrote; a non-zero exit is no error here.

    `argv[0]` is looked up on the `PATH` of `env`, which it gets but for what it could tell our
    service manager by. Standard input is `feed`, or empty. Raises
    `Unavailable` when the helper does not end within `timeout` or cannot be started for want of
    resources, `Refused` when it cannot be executed at all or writes more than `limit` bytes to
    either stream. Messages name the program, never its arguments. On cancellation the helper's
    process group is killed and the helper reaped, which takes a few seconds at most.
    """
    program = os.path.basename(argv[0])  # noqa: PTH119 - text from a command line
    seconds = timeout.total_seconds()
    with contextlib.ExitStack() as ours:
        try:
            with contextlib.ExitStack() as theirs:
                out, their_out = _pipe(ours, theirs)
                err, their_err = _pipe(ours, theirs)
                their_in, sink = _pipe(theirs, ours) if feed else (None, None)
                for end in (out, err, sink):
                    if end is not None:
                        os.set_blocking(end.fileno(), False)
                own = without_manager(env)
                process = await _spawn(argv, cwd, own, their_in, their_out, their_err)
        except (OSError, ValueError) as error:
            raise await _explained(program, cwd, error) from error

        streams = (_Stream(out, limit), _Stream(err, limit))
        try:
            with anyio.fail_after(seconds) as patience:
                async with anyio.create_task_group() as group:
                    for stream in streams:
                        group.start_soon(stream.collect, group.cancel_scope)
                    if feed and sink is not None:
                        group.start_soon(_feed, sink, feed)
                    code = await process.wait()
                    patience.deadline = math.inf
                    group.cancel_scope.deadline = anyio.current_time() + DRAIN_S
        except TimeoutError as error:
            raise Unavailable(
                f"{program} did not finish within {seconds:g} s and was killed; see whether it"
                " waits for a network, a lock or an answer"
            ) from error
        finally:
            if process.returncode is None:
                await _end(process)
        if any(stream.overflowed for stream in streams):
            raise Refused(f"{program} wrote more than {limit} bytes and was stopped; ask for less")
    return Finished(code, bytes(streams[0].data), bytes(streams[1].data))


class Companion:
    """A helper that runs beside us until we let go of its standard input, or have ended."""

    def __init__(self, process: asyncio.subprocess.Process, pipes: contextlib.ExitStack) -> None:
        self._process = process
        self._pipes = pipes

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._process.returncode is None

    async def end(self) -> None:
        """Let go of it, and see that it ends; not interrupted, takes a few seconds at most."""
        self._pipes.close()
        with anyio.move_on_after(REAP_S, shield=True):
            await self._process.wait()
        if self.is_alive:
            await _end(self._process)


async def beside(argv: Sequence[str], *, env: Mapping[str, str], within: timedelta) -> Companion:
    """Start a helper that writes what it reads, as `cat` does, and so ends with what it reads.

    That it is at work is proved by a word that comes back. Raises `Refused` when it cannot be
    executed or has ended instead, with what it said last, and `Unavailable` when it says nothing
    `within` that time or cannot be started for want of resources; nothing of it is left then, nor
    on cancellation.
    """
    program = os.path.basename(argv[0])  # noqa: PTH119 - text from a command line
    with contextlib.ExitStack() as ours:
        try:
            with contextlib.ExitStack() as theirs:
                out, their_out = _pipe(ours, theirs)
                err, their_err = _pipe(ours, theirs)
                their_in, sink = _pipe(theirs, ours)
                for end in (out, err, sink):
                    os.set_blocking(end.fileno(), False)
                own = without_manager(env)
                process = await _spawn(argv, "/", own, their_in, their_out, their_err)
        except (OSError, ValueError) as error:
            raise await _explained(program, "/", error) from error
        companion = Companion(process, ours.pop_all())
        is_there, said = False, ""
        try:
            with anyio.fail_after(within.total_seconds()), contextlib.suppress(BrokenPipeError):
                sink.write(WORD)
                is_there = await _hears(out, WORD)
                if not is_there:
                    await process.wait()
        except TimeoutError as error:
            raise Unavailable(f"{program} did not begin within {within}") from error
        finally:
            if not is_there:
                said = (err.read(CHUNK_BYTES) or b"").decode("utf-8", "replace").strip()
                await companion.end()
        if not is_there:
            raise Refused(f"{program} would not: {said or 'it said nothing'}")
    return companion


async def _hears(source: FileIO, word: bytes) -> bool:
    """Whether a word comes before the end."""
    heard = b""
    while word not in heard:
        chunk = source.read(CHUNK_BYTES)
        if chunk is None:
            await anyio.wait_readable(source)
        elif chunk and len(heard) < CHUNK_BYTES:
            heard += chunk
        else:
            return False
    return True


def _pipe(readers: contextlib.ExitStack, writers: contextlib.ExitStack) -> tuple[FileIO, FileIO]:
    # Pipes of our own: with asyncio's, wait() hangs on some versions of Python for as long as
    # a grandchild holds one.
    reader, writer = os.pipe()
    return (
        readers.enter_context(FileIO(reader, "rb")),
        writers.enter_context(FileIO(writer, "wb")),
    )


async def _spawn(
    argv: Sequence[str],
    cwd: str | os.PathLike[str],
    env: Mapping[str, str],
    stdin: FileIO | None,
    stdout: FileIO,
    stderr: FileIO,
) -> asyncio.subprocess.Process:
    # A cancellation in the middle of asyncio's spawn can hang or leak the child, so the spawn is
    # a task that always runs to its end, against cancel scopes and `Task.cancel` alike.
    spawning = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            *argv,
            cwd=cwd,
            env=env,
            stdin=asyncio.subprocess.DEVNULL if stdin is None else stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
    )
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        while not spawning.done():
            try:
                await asyncio.wait({spawning})
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            if spawning.exception() is None:
                await _end(spawning.result())
            raise cancelled
    return spawning.result()


async def _feed(sink: FileIO, data: bytes) -> None:
    left = memoryview(data)
    with sink, contextlib.suppress(BrokenPipeError):
        while left:
            written = sink.write(left[:CHUNK_BYTES])
            if written is None:
                await anyio.wait_writable(sink)
            else:
                left = left[written:]


async def _end(process: asyncio.subprocess.Process) -> None:
    # Not process.kill(): it polls, and racing the exit it can lose the exit code. macOS answers
    # a signal to a group of zombies with "not permitted".
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with anyio.move_on_after(REAP_S, shield=True):
        await process.wait()


async def _explained(
    program: str, cwd: str | os.PathLike[str], error: OSError | ValueError
) -> Refused | Unavailable:
    if isinstance(error, ValueError) or error.errno in SHORTAGES:
        # Without looking at the folder, for which there may be no thread, either.
        return explained(program, cwd, error)
    return await anyio.to_thread.run_sync(explained, program, cwd, error)
