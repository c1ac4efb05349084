"""What may be started now, by every brake and budget there is, and why the rest has to wait."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from chump_orchestrator.core import budget
from chump_orchestrator.core.backlog import Backlog
from chump_orchestrator.core.brakes import ROW_OF_FAILURES
from chump_orchestrator.core.gap import Gap
from chump_orchestrator.core.routing import Route
from chump_orchestrator.daemon.cascade import Cascade
from chump_orchestrator.daemon.learning import learn
from chump_orchestrator.daemon.spending import Spending

if TYPE_CHECKING:
    from chump_orchestrator.daemon.brakes import Brakes
    from chump_orchestrator.daemon.lookout import Lookout
    from chump_orchestrator.daemon.roster import Assignment, Place
    from chump_orchestrator.daemon.world import World


class Admission:
    """Asked before every dispatch; changes nothing but that it may postpone dispatching."""

    def __init__(
        self,
        world: World,
        brakes: Brakes,
        roster: Mapping[str, Place],
        lookout: Lookout,
        assignment: Assignment,
    ) -> None:
        self._world = world
        self._brakes = brakes
        self._roster = roster
        self._lookout = lookout
        self._assignment = assignment
        self.cascade = Cascade(world, brakes.backends)
        self.spending = Spending(world, roster)

    async def load(self) -> None:
        """Take over what the ledger has of earlier attempts; `Unavailable` when it cannot be."""
        attempts = await self._world.ledger.chronicle()
        self.cascade.load(attempts)
        await learn(self._world)
        await self.spending.load(attempts)

    def freed(self, gap: str) -> None:
        """Take note that a gap was freed: what its attempts came to no longer counts."""
        self.cascade.freed(gap)
        self.spending.freed(gap)

    def within_budgets(self, backlog: Backlog) -> Backlog:
        """Return the backlog with those gaps held that have cost too much already."""
        return budget.held_back(backlog, self.spending.held())

    async def free_slots(self, now: datetime, running: int, started: int) -> int:
        """Return how many agents may be started now, by every brake but budgets and `is_full`."""
        world, assigned = self._world, self._assignment
        if not self._brakes.allows(now, 1) or assigned.why(started, now):
            return 0
        places = self._roster.values()
        if self._brakes.fuse.blown_until and any(place.is_trial for place in places):
            return 0
        # What one of them met may keep its whole backend; that is known in a moment.
        if any(place.is_unheard for place in places):
            return 0
        # Agents that die at once free their slots before anybody can tell how they ended; while
        # the forge is silent too, a whole backlog would be thrown after them.
        most = world.policies.max_parallel
        free = min(most - running, max(ROW_OF_FAILURES, most) - self._undecided())
        if assigned.limit is not None:
            free = min(free, assigned.limit - started)
        if free > 0 and (shortage := await world.worktrees.shortage()):
            self._brakes.postpone(shortage)
            return 0
        return self._brakes.allows(now, max(free, 0))

    @property
    def is_full(self) -> bool:
        """Whether so many requests are open that none may be added."""
        return self._lookout.count_open() >= self._world.policies.max_open_pulls

    def _undecided(self) -> int:
        """Return how many agents have ended without a request that anybody has seen."""
        supervisors = (place.supervisor for place in self._roster.values())
        return sum(1 for s in supervisors if s and not s.is_running and not s.has_open_pull)

    def route(self, gap: Gap, now: datetime) -> Route | None:
        """Return the candidate whose turn it is, `None` while none can be used (behaviour G5)."""
        return self.cascade.choose(gap, now)

    def wanted(self, gap: Gap, now: datetime, begun_at: Route | None = None) -> Route | None:
        """Return where a gap goes that is wanted by name, `None` for not now.

        A session goes on where it was begun; a new attempt begins a new walk of its candidates.
        """
        if begun_at is not None:
            where = self._brakes.backends.first_usable((begun_at,), now)
        else:
            where = self.cascade.first(gap, now)
        return where if where is not None and self.can_pay(gap, where, now) else None

    def can_pay(self, gap: Gap, where: Route, now: datetime) -> bool:
        """Say whether the budgets of the day allow this agent now (behaviour X3)."""
        return self.spending.verdict_on(gap, where, now).allows

    def ends(self, now: datetime) -> list[datetime]:
        """Return when what keeps from dispatching ends by itself."""
        ends = self._brakes.ends(now)
        if self.spending.verdict(now).reached:
            ends.append(self.spending.day(now)[1])
        return ends

    def why_waiting(self, gap: Gap, started: int) -> str:
        """Return what keeps an eligible gap from its turn, beside the slots; or empty."""
        if braked := self._brakes.why():
            return braked
        now = self._world.clock.now()
        if limited := self._assignment.why(started, now):
            return limited
        day = self.spending.verdict(now)
        if not day.allows:
            return day.reason
        candidates = self.cascade.candidates(gap)
        where = self._brakes.backends.first_usable(candidates, now)
        if where is None:
            return self._brakes.backends.why(candidates, now)
        return self.spending.verdict_on(gap, where, now).reason
