"""A shim that has been started and waits for its word: an interpreter takes its time to start.

Until then it has done nothing for its dispatch: it has no lock, has touched no file, and leaves
when it is let go or when the daemon ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import anyio
import anyio.to_thread

from chump_orchestrator import shim
from chump_orchestrator.adapters.local.shims import PROGRAM, kill_shim

_SHIM = str(Path(shim.__file__).with_name(PROGRAM))
_ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C.UTF-8"}
_REAP_S = 5.0
_PIPE_BYTES = 64 * 1024


@dataclass(slots=True)
class Standby:
    """A process that forks the shim of a dispatch, and our ends of the shim's pipes."""

    directory: Path
    process: asyncio.subprocess.Process
    ask: FileIO
    answer: FileIO
    complaints: FileIO
    """What it says on standard error before it keeps a log of its own."""
    pipes: contextlib.ExitStack
    is_told: bool = False
    """Whether it has been given its word: from then on it is not to be let go."""

    def waits(self) -> bool:
        """Whether it still does, or starts; it never says anything before it was told."""
        return self.answer.read(1) is None

    def complaint(self) -> str:
        """Return the last line of what it has complained of; empty if of nothing."""
        said = (self.complaints.read(_PIPE_BYTES) or b"").decode("utf-8", "replace").strip()
        return said.rpartition("\n")[2]

    async def dismiss(self) -> None:
        """Let go of one that was not told, and wait until it has left; a few seconds at most."""
        with self.pipes:
            self.ask.close()
            with anyio.move_on_after(_REAP_S, shield=True):
                # It lets go of the others a moment before it ends.
                while self.complaints.read(_PIPE_BYTES) != b"":
                    await anyio.wait_readable(self.complaints)
                await see_off(self.process)
                return
            await anyio.to_thread.run_sync(kill_shim, self.directory)
            await see_off(self.process)


async def start(python: str, directory: Path) -> Standby:
    """Start the shim of the dispatch whose folder is to be `directory`.

    Agents outlive the daemon, but asyncio kills a child that still runs when the loop has gone.
    So its child forks the shim at once and ends; see docs/decisions/0003. Raises `OSError`, or
    `RuntimeError` for want of a thread to reap the child in. Not to be cancelled.
    """
    with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
        their_in, ask = _pipe(theirs, ours)
        answer, their_out = _pipe(ours, theirs)
        complaints, their_err = _pipe(ours, theirs)
        for end in (ask, answer, complaints):
            os.set_blocking(end.fileno(), False)
        process = await asyncio.create_subprocess_exec(  # noqa: TID251 - the shim's launch
            python,
            "-I",
            "-S",
            _SHIM,
            str(directory),
            stdin=their_in,
            stdout=their_out,
            stderr=their_err,
            cwd="/",
            env=_ENVIRONMENT,
            start_new_session=True,
        )
        return Standby(directory, process, ask, answer, complaints, ours.pop_all())


async def see_off(process: asyncio.subprocess.Process) -> None:
    """Have asyncio reap its child, which ends as soon as it has forked the shim."""
    with anyio.move_on_after(_REAP_S):
        await process.wait()
    if process.returncode is None:
        # Alone, for its group is the shim's. Not process.kill(), which races the exit for its code.
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        with anyio.move_on_after(_REAP_S):
            await process.wait()


def _pipe(readers: contextlib.ExitStack, writers: contextlib.ExitStack) -> tuple[FileIO, FileIO]:
    reader, writer = os.pipe()
    return (
        readers.enter_context(FileIO(reader, "rb")),
        writers.enter_context(FileIO(writer, "wb")),
    )
