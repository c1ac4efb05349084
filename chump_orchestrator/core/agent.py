"""An agent as the daemon sees it: what it does, what it says, how it is stopped."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Protocol

from chump_orchestrator.core.outcome import Exit, StopReason
from chump_orchestrator.core.tail import LINE_BYTES


class Agent(Protocol):
    """One agent, running or ended, as its shim tells of it."""

    @property
    def pid(self) -> int:
        """Process id of the agent itself."""
        ...

    @property
    def exit(self) -> Exit | None:
        """How it ended, once that is durable and nothing of it lives; `None` before."""
        ...

    @property
    def ended_at(self) -> datetime | None:
        """When it ended, in UTC."""
        ...

    def active(self) -> timedelta:
        """Active time so far, or in all once it has ended."""
        ...

    def silent(self) -> timedelta:
        """Time since it last wrote anything."""
        ...

    def tail(self) -> tuple[str, ...]:
        """The telling lines of its standard error, oldest first (behaviour T1)."""
        ...

    def last_words(self, *, errors_only: bool = False) -> str:
        """The ends of both its streams, or of standard error alone, for finding causes."""
        ...

    async def follow(
        self, on_line: Callable[[str], None], *, longest_line: int = LINE_BYTES
    ) -> Exit:
        """Follow its streams until it has ended; return how.

        `on_line` gets each line of standard output, cut at `longest_line` bytes, those that are
        not UTF-8 replaced. Returns when the exit is durable, the sweep is over and the shim is
        gone. Cancelling lets go of the agent, which lives on.
        """
        ...

    async def stop(self, reason: StopReason, *, now: bool = False) -> None:
        """Ask its shim to stop it, by the ladder or, with `now`, by KILL; returns at once.

        A shim that does not answer is woken, then signalled, and with `now` killed in the end,
        which takes up to some 20 s. Safe to call more than once, and after the end. `Unavailable`
        when there is no shim to be found and something holds its lock all the same.
        """
        ...

    async def extend(self, hard: timedelta) -> None:
        """Tell its shim the active time at which to stop it by itself."""
        ...

    async def recount(self) -> None:
        """Take over its shim's count of active time, which leaves out when all stood still.

        Nothing changes when the shim does not answer. Takes some seconds at most.
        """
        ...
