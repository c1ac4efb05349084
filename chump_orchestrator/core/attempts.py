"""Attempts in brief: who was tried, how it ended, what it cost; and who remembers them."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from chump_orchestrator.core.causes import Cause
from chump_orchestrator.core.deferred import dataclass
from chump_orchestrator.core.gap import Effort
from chump_orchestrator.core.outcome import OutcomeKind
from chump_orchestrator.core.routing import Route


@dataclass(frozen=True, slots=True)
class Attempt:
    """What is kept in mind of one dispatch for as long as a daemon lives.

    `had_agent` says that an agent was started for it. `ended_at` is when that ended, or else the
    dispatch, `None` while it is under way, as is `kind`. `cost_usd` and `tokens` are what the agent
    told, `None` where it did not. `is_excused` says that a failure was not the gap's;
    `is_freed` that its gap was freed or opened anew since.
    """

    dispatch: str
    gap: str
    effort: Effort
    route: Route
    had_agent: bool = False
    ended_at: datetime | None = None
    kind: OutcomeKind | None = None
    cause: Cause | None = None
    cost_usd: float | None = None
    tokens: int | None = None
    is_excused: bool = False
    is_freed: bool = False


RESUMED_AT = "resumed_at"
"""Under this name a ledger keeps when an operator last resumed: what was met before is over."""


class Chronicle(Protocol):
    """The part of a ledger that is read once, when a daemon starts, and kept in mind."""

    async def chronicle(self) -> tuple[Attempt, ...]:
        """Return every dispatch in brief, in the order in which they were begun."""
        ...

    async def meta(self, key: str) -> str | None:
        """Return the text that was kept under `key`, `None` when there is none."""
        ...

    async def set_meta(self, key: str, value: str) -> None:
        """Keep a text under `key`, in place of an earlier one."""
        ...
