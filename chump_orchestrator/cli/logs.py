"""What agents wrote, from the capped logs that their shims keep (behaviour T1)."""

from __future__ import annotations

import codecs
import os
import re
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import click

from chump_orchestrator import premises
from chump_orchestrator.cli.options import GapId, Invocation, everywhere
from chump_orchestrator.cli.render import note
from chump_orchestrator.cli.repository import entered, wait_for
from chump_orchestrator.cli.retelling import Retelling, reader_of
from chump_orchestrator.config import Loaded
from chump_orchestrator.core.errors import Refused
from chump_orchestrator.core.ports import Ledger
from chump_orchestrator.core.records import Record
from chump_orchestrator.core.tail import harmless

CHUNK = 256 * 1024
"""Bytes read at once."""

POLL_S = 0.3
"""Seconds between two looks at the files of an agent that is followed."""

ASK_EVERY = 10
"""Looks at the files per look into the ledger, for an agent whose shim left no exit behind."""

STDOUT = "stdout"

_SEGMENT = re.compile(r"(stdout|stderr)\.(?:(\d{15})\.)?log", re.ASCII)


@click.command("logs")
@click.argument("gap", type=GapId())
@click.option("-f", "--follow", is_flag=True, help="Go on until the dispatch has ended.")
@click.option(
    "--stream",
    type=click.Choice(["stdout", "stderr", "both"]),
    default="both",
    show_default=True,
    help="Which of its streams.",
)
@click.option(
    "--attempt", type=click.IntRange(min=1), metavar="N", help="Not the newest, but this one."
)
@click.option(
    "--words/--raw",
    "in_words",
    default=None,
    help="Events in words, the default on a terminal, or as they were written.",
)
@everywhere
@click.pass_obj
def logs_command(
    invocation: Invocation,
    gap: str,
    *,
    follow: bool,
    stream: str,
    attempt: int | None,
    in_words: bool | None,
) -> None:
    """Print what the newest agent of GAP wrote."""
    grounds = entered(invocation)
    # Where the logs lie is all that is needed of the settings.
    grounds.tell()
    streams = ("stdout", "stderr") if stream == "both" else (stream,)
    asked = _Asked(gap, streams, attempt, sys.stdout.isatty() if in_words is None else in_words)
    wait_for(partial(_print, grounds.root, grounds.loaded, asked, follow=follow))


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is to be printed: of which attempt, which streams, and events in words or raw."""

    gap: str
    streams: tuple[str, ...]
    attempt: int | None
    in_words: bool


@dataclass(slots=True)
class Reader:
    """Reads one stream of one dispatch, from segment to segment, in the order of its offsets.

    `offset` is that of the next byte; `missing` counts those that are no longer kept.
    """

    folder: Path
    stream: str
    offset: int = 0
    missing: int = 0

    def chunks(self) -> Iterator[bytes]:
        """Yield what has been written since the last call, as far as it is kept."""
        while True:
            chunk = self._next()
            if not chunk:
                return
            yield chunk

    def _next(self) -> bytes:
        for start, path in sorted(self._segments()):
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except OSError:
                continue
            try:
                opened = os.fstat(fd)
                begin = max(self.offset, start)
                chunk = os.pread(fd, CHUNK, begin - start)
                # The shim uses the oldest segment again under a new name: were it this one, what
                # was read may be bytes from elsewhere.
                still = path.lstat()
                if not chunk or (still.st_ino, still.st_dev) != (opened.st_ino, opened.st_dev):
                    continue
            except OSError:
                continue
            finally:
                os.close(fd)
            self.missing += begin - self.offset
            self.offset = begin + len(chunk)
            return chunk
        return b""

    def _segments(self) -> Iterator[tuple[int, Path]]:
        try:
            files = list(self.folder.iterdir())
        except OSError:
            return
        for file in files:
            match = _SEGMENT.fullmatch(file.name)
            if match and match[1] == self.stream:
                yield int(match[2] or 0), file


class Printer:
    """Prints chunks of streams, with a heading whenever another stream goes on."""

    def __init__(self, *, with_headings: bool, retelling: Retelling | None = None) -> None:
        self._with_headings = with_headings
        self._retelling = retelling
        self._current = ""
        self._at_line_start = True
        # A terminal is given text without escape sequences; a file or pipe what was written.
        self._is_terminal = sys.stdout.isatty()
        self._decoders: dict[str, codecs.IncrementalDecoder] = {}

    def heading(self, stream: str) -> None:
        """Say that what follows is of `stream`."""
        if self._with_headings and stream != self._current:
            if not self._at_line_start:
                click.echo()
            click.echo(f"==> {stream} <==")
            self._at_line_start = True
        self._current = stream

    def print(self, stream: str, chunk: bytes) -> None:
        """Print the next bytes of `stream`, events in words where somebody understands them."""
        if self._retelling is not None and stream == STDOUT:
            self._tell(self._retelling.feed(chunk))
        else:
            self._write(stream, chunk)

    def missing(self, stream: str, count: int) -> None:
        """Say that bytes of `stream` are not kept."""
        note(f"[{count} bytes of {stream} are not kept]")
        if self._retelling is not None and stream == STDOUT:
            self._retelling.skip()

    def end(self) -> None:
        """Print what is left when nothing more will come."""
        if self._retelling is not None:
            self._tell(self._retelling.end())

    def _tell(self, words: str) -> None:
        if words:
            self._write(STDOUT, harmless(words).encode("utf-8", "replace"))

    def _write(self, stream: str, chunk: bytes) -> None:
        self.heading(stream)
        self._at_line_start = chunk.endswith(b"\n")
        if not self._is_terminal:
            click.echo(chunk, nl=False)
            return
        if stream not in self._decoders:
            self._decoders[stream] = codecs.getincrementaldecoder("utf-8")("replace")
        click.echo(harmless(self._decoders[stream].decode(chunk)), nl=False)


async def _print(
    root: Path,
    loaded: Loaded,
    asked: _Asked,
    *,
    follow: bool,
) -> None:
    async with premises.open_ledger(root, loaded, readonly=True) as ledger:
        record = await _find(ledger, asked.gap, asked.attempt)
        folder = premises.state_dir(root, loaded) / "d" / record.dispatch.id
        readers = [Reader(folder, stream) for stream in asked.streams]
        reader = None
        if asked.in_words:
            reader = reader_of(record.dispatch.route.backend, loaded.settings)
        printer = Printer(
            with_headings=len(asked.streams) > 1,
            retelling=None if reader is None else Retelling(reader),
        )
        show = partial(anyio.to_thread.run_sync, partial(_show, readers, printer))
        if not await anyio.to_thread.run_sync(folder.is_dir) and not record.state.is_active:
            raise Refused(
                f"the logs of {record.dispatch.id} are gone (state.keep_days), or there were none"
            )
        if follow:
            await _follow(folder, partial(_has_ended, ledger, record), show)
        await show()
        printer.end()


async def _follow(
    folder: Path,
    has_ended: Callable[[], Awaitable[bool]],
    show: Callable[[], Awaitable[None]],
) -> None:
    """Show what is written until the shim has written down the end, or the ledger has it."""
    looks = 0
    end = anyio.Path(folder / "exit.json")
    while not await end.exists():
        if looks % ASK_EVERY == 0 and await has_ended():
            return
        await show()
        await anyio.sleep(POLL_S)
        looks += 1


async def _has_ended(ledger: Ledger, record: Record) -> bool:
    active = await ledger.records(active=True)
    return record.dispatch.id not in {one.dispatch.id for one in active}


async def _find(ledger: Ledger, gap: str, attempt: int | None) -> Record:
    latest = await ledger.latest(1 if attempt is None else await ledger.attempts(gap), gap)
    for record in latest:
        if attempt is None or record.dispatch.attempt == attempt:
            return record
    what = gap if attempt is None else f"attempt {attempt} of {gap}"
    raise Refused(f"{what} has not been dispatched here; `history` lists what has")


def _show(readers: list[Reader], printer: Printer) -> None:
    for reader in readers:
        before = reader.missing
        for chunk in reader.chunks():
            if reader.missing > before:
                printer.missing(reader.stream, reader.missing - before)
                before = reader.missing
            printer.print(reader.stream, chunk)
    sys.stdout.flush()
