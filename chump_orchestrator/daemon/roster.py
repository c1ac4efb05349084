"""Who is under way, and what a run is limited to."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from chump_orchestrator.core.gap import Gap
from chump_orchestrator.core.outcome import StopReason
from chump_orchestrator.core.routing import Route

if TYPE_CHECKING:
    from chump_orchestrator.daemon.supervisor import Supervisor


@dataclass(slots=True)
class Place:
    """A gap's place on the roster, from the moment it is picked until it is settled."""

    gap: Gap
    route: Route
    dispatch: str = ""
    attempt: int = 0
    supervisor: Supervisor | None = None
    stop_asked: tuple[StopReason, bool] | None = None
    is_trial: bool = False
    broken: bool = False

    @property
    def holds_slot(self) -> bool:
        """Whether an agent of it runs or is being started."""
        if self.broken:
            return False
        return self.supervisor is None or self.supervisor.is_running

    def request_stop(self, reason: StopReason, *, now: bool = False) -> None:
        """Ask for its agent to be stopped, as soon as there is one."""
        self.stop_asked = (reason, now)
        if self.supervisor is not None:
            self.supervisor.request_stop(reason, now=now)


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a run is limited to: these gaps, so many dispatches, until then; `None` is no limit."""

    gaps: frozenset[str] = frozenset()
    limit: int | None = None
    until: datetime | None = None
    once: bool = False
