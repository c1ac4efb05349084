"""Who is under way, and what a run is limited to."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import anyio

from chump_orchestrator.core.backlog import Backlog, Hold, HoldKind
from chump_orchestrator.core.gap import PERPETUAL, Gap
from chump_orchestrator.core.outcome import StopReason
from chump_orchestrator.core.routing import Route

if TYPE_CHECKING:
    from chump_orchestrator.daemon.supervisor import Supervisor
    from chump_orchestrator.daemon.wishes import Wish


@dataclass(slots=True)
class Place:
    """A gap's place on the roster, from the moment it is picked until all is tidy again.

    `siblings` is how many other agents were in flight when its own ended (behaviour R4).
    `broken` is one that ended in a bug: nothing starts the gap again before the next start.
    `wish` is what was asked for by name, if it was.
    `making` is the scope of the steps before there is a worktree, which a stop gives up.
    `has_rested` says that its account rests since its agent's last words, before it is settled.
    """

    gap: Gap
    route: Route
    dispatch: str = ""
    attempt: int = 0
    supervisor: Supervisor | None = None
    stop_asked: tuple[StopReason, bool] | None = None
    is_trial: bool = False
    wish: Wish | None = None
    settled: bool = False
    broken: bool = False
    has_rested: bool = False
    siblings: int | None = None
    making: anyio.CancelScope = field(default_factory=anyio.CancelScope, compare=False)

    @property
    def holds_slot(self) -> bool:
        """Whether an agent of it runs or is being started."""
        if self.supervisor is not None and self.supervisor.follow_up.is_granted:
            return True  # for the session that goes on with its request
        if self.settled:
            return False
        if self.supervisor is None:
            return not self.broken
        return self.supervisor.is_running

    @property
    def is_beginning(self) -> bool:
        """Whether it is on its way to an agent that it does not have yet."""
        return self.supervisor is None and not (self.settled or self.broken)

    @property
    def is_unheard(self) -> bool:
        """Whether its agent has ended, and is not yet listened to up to its last words."""
        supervisor = self.supervisor
        if self.settled or self.broken or supervisor is None:
            return False
        return not supervisor.is_running and supervisor.exit is None

    def request_stop(self, reason: StopReason, *, now: bool = False) -> None:
        """Ask for its agent to be stopped, as soon as there is one; the first reason counts."""
        asked = self.stop_asked or (reason, False)
        self.stop_asked = (asked[0], asked[1] or now)
        self.making.cancel()
        if self.supervisor is not None:
            self.supervisor.request_stop(reason, now=now)


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a run is limited to: these gaps, so many dispatches, until then; `None` is no limit.

    `pull_wait` is how long a single run waits for a request that is open when nothing else is
    left to do for it; it leaves it open then, for a later run.
    """

    gaps: frozenset[str] = frozenset()
    limit: int | None = None
    until: datetime | None = None
    once: bool = False
    pull_wait: timedelta | None = None

    def restrict(self, backlog: Backlog, done: Container[str]) -> Backlog:
        """Hold what the run is not for, and in a single run perpetual gaps among the `done`."""
        holds: dict[str, Hold] = {}
        if self.gaps:
            rest = Hold(HoldKind.RESTING, "this run is for other gaps (--gap)")
            holds = {gap.id: rest for gap in backlog.gaps if gap.id not in self.gaps}
        if self.once:
            had = Hold(HoldKind.RESTING, "it has had its run")
            perpetual = (gap.id for gap in backlog.gaps if gap.status == PERPETUAL)
            holds |= {gap_id: had for gap_id in perpetual if gap_id in done}
        return backlog.with_holds({**holds, **backlog.holds}, backlog.shipped) if holds else backlog

    def why(self, started: int, now: datetime) -> str:
        """Say why the run starts nothing more, `started` so far; empty while it may."""
        if self.limit is not None and started >= self.limit:
            return f"this run starts no more than {self.limit} agents (--limit)"
        if self.until is not None and now >= self.until:
            return "its time is over (--until)"
        return ""
