"""When a run that is to end has nothing left to wait for (behaviour C8)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from chump_orchestrator.core.backlog import HoldKind
from chump_orchestrator.core.picker import Choice

if TYPE_CHECKING:
    from chump_orchestrator.daemon.admission import Admission
    from chump_orchestrator.daemon.brakes import Brakes
    from chump_orchestrator.daemon.roster import Assignment, Place
    from chump_orchestrator.daemon.world import World


class Ending:
    """Says of a single run whether it is over; any other goes on until it is told to end."""

    def __init__(
        self, world: World, brakes: Brakes, admission: Admission, assignment: Assignment
    ) -> None:
        self._world = world
        self._brakes = brakes
        self._admission = admission
        self._assignment = assignment

    def is_over(
        self, roster: Mapping[str, Place], choice: Choice, started: int, *, is_held_up: bool
    ) -> bool:
        """Say whether nothing is under way, and nothing follows now or by itself."""
        waits_s = [self.patience_s(place) for place in roster.values() if not place.broken]
        if not self._assignment.once or any(left_s is None or left_s > 0 for left_s in waits_s):
            return False
        if self._brakes.is_worth_waiting and (is_held_up or choice.waiting):
            return False
        return not self._comes_by_itself(choice, started)

    def patience_s(self, place: Place) -> float | None:
        """Return how many more seconds a single run waits for a dispatch; `None` is to its end."""
        supervisor, limit = place.supervisor, self._assignment.pull_wait
        if limit is None or supervisor is None or supervisor.is_running:
            return None
        if supervisor.follow_up.is_granted:
            return None
        waited_s = supervisor.waiting_s()
        return None if waited_s is None else max(limit.total_seconds() - waited_s, 0.0)

    def _comes_by_itself(self, choice: Choice, started: int) -> bool:
        """Say whether something follows before long. A new day is too far off to be waited for."""
        now = self._world.clock.now()
        if self._assignment.why(started, now) or self._admission.spending.verdict(now).reached:
            return False
        if any(r.reason.startswith(HoldKind.BACKOFF) for r in choice.refused):
            return True
        if self._brakes.why():
            return False
        return any(self._admission.cascade.waits_shortly(gap, now) for gap in choice.waiting)
