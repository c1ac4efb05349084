"""What an agent tells of itself: its lines understood by its backend, and when it last got on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import anyio
import structlog

from chump_orchestrator.core.errors import ConfigError, Unavailable
from chump_orchestrator.core.outcome import Exit
from chump_orchestrator.core.tail import LINE_BYTES
from chump_orchestrator.core.testimony import MakesReaders, Report, Said

if TYPE_CHECKING:
    from chump_orchestrator.core.agent import Agent
    from chump_orchestrator.core.outcome import Exit
    from chump_orchestrator.daemon.world import World

log = structlog.get_logger()

FOLLOW_AGAIN_S = 1.0
"""Between two attempts to follow an agent, for want of what that takes."""

LONGEST_LINE = 2**20
"""Bytes of a line that any backend can have at most."""

ASK_AGAIN = timedelta(seconds=1)
"""When a shim does not take a request, it is asked again after so long."""


NUMBERS_HEARD = 10
"""So many numbers of pull requests may one agent print that the forge is asked about at once."""


class Hearing:
    """Listens to one agent. What its backend does wrong costs understanding and nothing else."""

    def __init__(self, world: World, backend: str, before: Report, agent: Agent) -> None:
        self.longest_line = LINE_BYTES
        self._clock = world.clock
        self._hide = world.hide
        self._agent = agent
        self._told = before
        self._numbers = 0
        self._shown = (before, before)
        self._heard_s: float | None = None
        self._active_at = before.active_at
        self._read: Callable[[str], Said] | None = None
        try:
            made = world.backend(backend)
            if isinstance(made, MakesReaders):
                reader = made.reader()
                self._read = reader.read
                self.longest_line = max(LINE_BYTES, min(reader.longest_line, LONGEST_LINE))
            else:
                self._read = made.read
        except ConfigError as error:
            # It was there when the agent was started.
            log.warning("output.unread", error=str(error))
        except Exception:
            log.exception("output.misread")

    @property
    def session(self) -> str:
        """The session that the agent has, as far as it is known."""
        return self._told.session

    @property
    def report(self) -> Report:
        """What the agent has told so far, without secrets."""
        told, shown = self._shown
        if told is not self._told:
            told = self._told
            shown = replace(
                told,
                active_at=self._active_at,
                activity=self._hide(told.activity),
                answer=self._hide(told.answer),
                failure=self._hide(told.failure),
                aside=self._hide(told.aside),
            )
            self._shown = (told, shown)
        return shown

    def line(self, line: str) -> bool:
        """Take a line of output; say whether it names a pull request to be looked for at once."""
        if self._read is None:
            return False
        before = self._told
        try:
            said = self._read(line)
            if said is None:
                return False
            told = before.after(said)
            has_got_on = told.steps != before.steps
        except Exception:
            log.exception("output.misread")
            self._read = None
            return False
        if has_got_on:
            # A line that comes again after a re-attachment is as old as the agent is silent.
            age = self._agent.silent()
            self._heard_s = self._clock.monotonic() - age.total_seconds()
            self._active_at = self._clock.now() - age
        self._told = told
        is_new = told.pull_number is not None and told.pull_number != before.pull_number
        self._numbers += is_new
        return is_new and self._numbers <= NUMBERS_HEARD

    def quiet(self) -> timedelta:
        """Return for how long the agent has not got on, as far as can be told.

        One whose output is a stream of events may write and get nowhere, for instance while it
        tries the same request again; any other counts as busy when it writes.
        """
        silent = self._agent.silent()
        if self._heard_s is None or not self._told.is_stream:
            return silent
        return max(silent, timedelta(seconds=self._clock.monotonic() - self._heard_s))


async def hear_out(world: World, backend: str, before: Report, agent: Agent) -> Report:
    """Return what an agent that has ended has told, read from what is left of its output."""
    hearing = Hearing(world, backend, before, agent)

    def on_line(line: str) -> None:
        hearing.line(line)

    await agent.follow(on_line, longest_line=hearing.longest_line)
    hearing.line("")
    return hearing.report


async def followed(
    agent: Agent, on_line: Callable[[str], None], longest_line: int = LINE_BYTES
) -> Exit:
    """Follow an agent to its end, also where this machine lacks what that takes for a while."""
    while True:
        try:
            return await agent.follow(on_line, longest_line=longest_line)
        except Unavailable as error:
            log.warning("agent.unfollowed", error=str(error))
            await anyio.sleep(ASK_AGAIN.total_seconds())
