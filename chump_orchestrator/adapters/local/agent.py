"""One agent, as its shim and its files tell of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import structlog

from chump_orchestrator.adapters.local.files import read_log
from chump_orchestrator.adapters.local.numbers import seconds, whole
from chump_orchestrator.adapters.local.output import Gist, Output
from chump_orchestrator.adapters.local.remains import (
    UNREADABLE,
    Found,
    Stage,
    instant,
    is_held,
    look,
    sweep,
)
from chump_orchestrator.adapters.local.shims import end_shim, kill_shim, shims_of, wake_shim
from chump_orchestrator.adapters.local.wire import ask, listen
from chump_orchestrator.core.errors import Refused, Unavailable
from chump_orchestrator.core.outcome import Exit, StopReason
from chump_orchestrator.core.ports import Clock
from chump_orchestrator.core.tail import LINE_BYTES

_STREAMS = ("stdout", "stderr")
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.005, 0.05
_RECONNECT_S = 1.0
_ADRIFT_S = 1.0
"""Between two looks at all processes, which cost more than a look at a lock."""

_ATTENDED_S = 30.0
"""Between two looks while the shim is heard of: it hangs up when it ends, however that is."""

_LISTEN_ON_S = 5.0
"""How long the last words of a shim that has gone may take."""

_TWICE_S = 0.2
"""Between two signals of one kind, which become one when they come too close."""

LAST_RESORT_S = 5.0
"""How long a shim that cannot be asked may take to kill its agent before it is killed itself."""

_CODES, _SIGNALS = 255, 255
_MIB, _GIB = 2**20, 2**30
_GONE = "the files of the dispatch have gone"

log = structlog.get_logger()


class ShimAgent:
    """An agent under a shim, running or ended; see `core.ports.Agent`.

    `active_s` and `silent_s` are what they were when this was made; `old` are the offsets, by
    stream, of what had been written by then.
    """

    def __init__(
        self,
        directory: Path,
        clock: Clock,
        *,
        pid: int,
        active_s: float = 0.0,
        silent_s: float = 0.0,
        old: Mapping[str, int] | None = None,
    ) -> None:
        self._directory = directory
        self._clock = clock
        self._pid = pid
        self._began = clock.monotonic() - active_s
        self._last_at = clock.monotonic() - silent_s
        self._old = old or {}
        self._output = Output()
        self._exit: Exit | None = None
        self._ended_at: datetime | None = None
        self._farewell: dict[str, object] = {}
        self._signalled: StopReason | None = None
        self._heard_from: set[str] = set()
        self._stirred = anyio.Event()

    @property
    def pid(self) -> int:
        return self._pid

    @property
    def exit(self) -> Exit | None:
        return self._exit

    @property
    def ended_at(self) -> datetime | None:
        return self._ended_at

    def active(self) -> timedelta:
        if self._exit is not None:
            return self._exit.active
        return timedelta(seconds=self._clock.monotonic() - self._began)

    def silent(self) -> timedelta:
        return timedelta(seconds=self._clock.monotonic() - self._last_at)

    def tail(self) -> tuple[str, ...]:
        return self._output.tail.lines()

    def last_words(self, *, errors_only: bool = False) -> str:
        return self._output.last_words(errors_only=errors_only)

    async def follow(
        self, on_line: Callable[[str], None], *, longest_line: int = LINE_BYTES
    ) -> Exit:
        self._output.lines.longest = longest_line
        if self._exit is None:
            found: Found | Unavailable
            async with anyio.create_task_group() as group:
                for stream in _STREAMS:
                    group.start_soon(self._listen, stream, on_line)
                try:
                    found = await self._await_end()
                    group.cancel_scope.deadline = anyio.current_time() + _LISTEN_ON_S
                except Unavailable as error:  # raised in here it would come out within a group
                    found = error
                    group.cancel_scope.cancel()
            if isinstance(found, Unavailable):
                raise found
            ended = self.end(found)
        else:
            ended = self._exit
        for stream in _STREAMS:
            await self._read_rest(stream, on_line)
        await self._output.finish(on_line)
        return ended

    async def stop(self, reason: StopReason, *, now: bool = False) -> None:
        """See `core.ports.Agent`; a shim that does not answer is signalled.

        It is woken first, then sent TERM; with `now` it is killed in the end, and what it leaves
        is swept. That takes seconds.
        """
        request: dict[str, object] = {"op": "stop", "reason": reason.value, "now": now}
        if self._exit is not None or await self._is_told(request):
            return
        is_there = await anyio.to_thread.run_sync(wake_shim, self._directory)
        if is_there and await self._is_told(request):
            log.info("shim.woken", dispatch=self._directory.name)
            return
        over = (Stage.ENDED, Stage.NEVER) if now else (Stage.ENDING, Stage.ENDED, Stage.NEVER)
        if (await self._look()).stage in over:
            return
        if not is_there and not now:
            raise Unavailable(
                f"the shim of {self._directory.name} cannot be found, and something holds its"
                f" lock; see what has {self._directory} open"
            )
        await self._signal(reason, now=now)

    async def extend(self, hard: timedelta) -> None:
        await self._tell({"op": "deadline", "hard_s": hard.total_seconds()})

    async def recount(self) -> None:
        if self._exit is not None:
            return
        with contextlib.suppress(Unavailable):
            counted_s = seconds((await ask(self._directory, {"op": "status"})).get("active_s"))
            if counted_s is not None:
                self._began = self._clock.monotonic() - counted_s

    def end(self, found: Found) -> Exit:
        """Take over how it ended from what was found of it."""
        if found.stage is Stage.ENDED:
            self._exit = _exit_of(found.record)
            self._ended_at = instant(found.record.get("ended_at")) or self._clock.now()
        else:
            self._exit = self._without_files(found)
            self._ended_at = instant(self._farewell.get("ended_at")) or self._clock.now()
        if self._signalled and (self._exit.lost or self._exit.stopped_by == StopReason.HOST):
            # The signal could not tell the shim on whose behalf.
            self._exit = replace(self._exit, stopped_by=self._signalled.value)
        return self._exit

    async def rebuild(self) -> None:
        """Read the tail and the last words of an ended agent back from its logs."""
        await anyio.to_thread.run_sync(self._reread)

    async def _tell(self, request: dict[str, object]) -> None:
        if self._exit is not None:
            return
        try:
            answer = await ask(self._directory, request)
            if answer.get("ok") is True:
                return
            status = await ask(self._directory, {"op": "status"})
        except Unavailable:
            if (await self._look()).stage in (Stage.RUNNING, Stage.ADRIFT):
                raise
            return
        # A deadline comes too late for an agent that is being stopped, which is no matter.
        if status.get("state") == "running":
            raise Refused(
                f"the shim of {self._directory.name} would not {request['op']}:"
                f" {answer.get('error')}"
            )

    async def _is_told(self, request: dict[str, object]) -> bool:
        try:
            return (await ask(self._directory, request)).get("ok") is True
        except Unavailable:
            return False

    async def _signal(self, reason: StopReason, *, now: bool) -> None:
        """Stop the agent of a shim that cannot be asked."""
        name, directory = self._directory.name, self._directory
        if self._signalled is None:
            log.warning("shim.signalled", dispatch=name, reason=reason.value)
            await anyio.to_thread.run_sync(end_shim, directory)
            self._signalled = reason
        if not now:
            return
        await anyio.sleep(_TWICE_S)
        await anyio.to_thread.run_sync(end_shim, directory)
        if not await self._has_left():
            log.warning("shim.killed", dispatch=name, reason=reason.value)
            await anyio.to_thread.run_sync(kill_shim, directory)
        if (await self._look()).stage is Stage.RUNNING:
            # Something of the agent's may hold the lock in its shim's place.
            await anyio.to_thread.run_sync(sweep, name, {})

    async def _has_left(self) -> bool:
        until = anyio.current_time() + LAST_RESORT_S
        while anyio.current_time() < until:
            if not await anyio.to_thread.run_sync(shims_of, self._directory):
                return True
            await anyio.sleep(_TWICE_S)
        return False

    def _without_files(self, found: Found) -> Exit:
        """How an agent ended whose shim could write nothing down, and perhaps told it.

        A sweep by the marker proves nothing of processes that have cleared their environment:
        only the shim, which adopts them, knows that it has left none.
        """
        active = self.active()
        told = _exit_of(self._farewell) if self._farewell else Exit(clean=False, active=active)
        is_clean = told.clean and not told.lost and not found.record.get("survivors")
        return replace(told, lost=_GONE, clean=is_clean)

    async def _listen(self, stream: str, on_line: Callable[[str], None]) -> None:
        """Follow a stream for as long as the shim lives, over as many connections as it takes."""
        wait_s = _FIRST_WAIT_S

        def heard(end: int) -> None:
            nonlocal wait_s
            wait_s = _FIRST_WAIT_S
            if end > self._old.get(stream, 0):
                self._last_at = self._clock.monotonic()

        async def take(offset: int, data: bytes) -> None:
            heard(offset + len(data))
            await self._output.take(stream, offset, data, on_line)

        def leap(gist: Gist) -> None:
            heard(gist.offset + gist.size)
            self._output.leap(stream, gist)

        # Of standard output every line is wanted.
        may_leap = leap if stream == "stderr" else None
        opened = partial(self._heard_from.add, stream)
        while True:
            offset = self._output.offsets[stream]
            said = await listen(self._directory, stream, offset, take, opened, may_leap)
            self._heard_from.discard(stream)
            self._stirred.set()
            if said is not None:
                record = said.get("record")
                self._farewell = record if isinstance(record, dict) else self._farewell
                return
            if not await anyio.to_thread.run_sync(is_held, self._directory):
                return
            await anyio.sleep(wait_s)
            wait_s = min(2 * wait_s, _RECONNECT_S)

    async def _await_end(self) -> Found:
        """Wait for the end, which comes soon after the shim has hung up."""
        wait_s = _FIRST_WAIT_S
        while True:
            self._stirred = anyio.Event()
            found = await self._look()
            if found.stage in (Stage.ENDED, Stage.NEVER):
                return found
            limit_s = _ADRIFT_S if found.stage is Stage.ADRIFT else wait_s
            with anyio.move_on_after(_ATTENDED_S if self._heard_from else limit_s):
                await self._stirred.wait()
            wait_s = _FIRST_WAIT_S if self._stirred.is_set() else min(2 * wait_s, _LONGEST_WAIT_S)

    async def _look(self) -> Found:
        return await anyio.to_thread.run_sync(
            look, self._directory, self._directory.name, self._clock.now()
        )

    async def _read_rest(self, stream: str, on_line: Callable[[str], None]) -> None:
        """Take from the logs what no connection has brought."""
        while True:
            offset, data = await anyio.to_thread.run_sync(
                read_log, self._directory, stream, self._output.offsets[stream]
            )
            if not data:
                return
            await self._output.take(stream, offset, data, on_line)

    def _reread(self) -> None:
        errors = partial(read_log, self._directory, "stderr")
        while (piece := errors(self._output.offsets["stderr"]))[1]:
            self._output.note("stderr", *piece)
        self._output.tail.finish()
        # Standard output is left to `follow`, which hands out its lines.
        offset = 0
        while (piece := read_log(self._directory, "stdout", offset))[1]:
            self._output.keep_end("stdout", piece[1])
            offset = piece[0] + len(piece[1])


def _exit_of(record: dict[str, object]) -> Exit:
    """The exit that a record tells of, written by the shim or over its grave."""
    error = record.get("spawn_error")
    ended = Exit(
        code=whole(record.get("code"), _CODES),
        signal=whole(record.get("signal"), _SIGNALS, least=1),
        stopped_by=_text(record.get("killed_by")),
        spawn_error=_text(error.get("message")) if isinstance(error, dict) else "",
        lost=_text(record.get("lost")),
        clean=record.get("clean", True) is True and not record.get("survivors"),
        active=_span(record.get("active_s")),
        peak_rss_bytes=whole(record.get("peak_rss_bytes")) or 0,
        cpu=_span(record.get("cpu_s")),
        out_of_memory=_out_of_memory(record.get("out_of_memory")),
    )
    says_how = ended.code is not None or ended.signal is not None or ended.spawn_error
    if says_how or ended.lost or record.get("survivors"):
        return ended
    return replace(ended, lost=UNREADABLE, clean=False)


def _out_of_memory(told: object) -> str:
    """For want of what memory a part of it was killed, in words; empty when that was not so."""
    if not isinstance(told, dict) or not whole(told.get("kills")):
        return ""
    limit = whole(told.get("limit"))
    if told.get("at_limit") is True and limit:
        size = f"{limit / _GIB:.4g} GiB" if limit >= _GIB else f"{limit / _MIB:.4g} MiB"
        return f"killed at its limit of {size} of memory"
    return "killed because the machine ran out of memory"


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _span(value: object) -> timedelta:
    return timedelta(seconds=seconds(value) or 0.0)
