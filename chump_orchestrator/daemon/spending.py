"""What has been spent, on which gap and today, and what that leaves for the next (behaviour X3).

Sums are kept in mind: read from the ledger once, when the daemon starts, and carried on with every
dispatch that is settled. What agents at work have told so far is read off their supervisors.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta, tzinfo
from typing import TYPE_CHECKING

import structlog

from chump_orchestrator.core import budget
from chump_orchestrator.core.attempts import Attempt
from chump_orchestrator.core.budget import AtWork, Estimate, Outlook, Spent, Used, Verdict
from chump_orchestrator.core.errors import Unavailable
from chump_orchestrator.core.gap import Effort, Gap
from chump_orchestrator.core.outcome import OutcomeKind
from chump_orchestrator.core.routing import Route

if TYPE_CHECKING:
    from chump_orchestrator.daemon.roster import Place
    from chump_orchestrator.daemon.world import World

log = structlog.get_logger()

KEPT = 500
"""So many of the latest dispatches are kept in mind to tell what the next ones will use."""

DAYS_KEPT = timedelta(hours=50)
"""Those that ended since then are kept as well: a day has 25 hours at most, and clocks err."""

TOLD = "budget_told"
"""Under this name the ledger keeps which budgets were said to be reached, and on which day."""


class Spending:
    """Keeps the sums of one daemon; asked before every dispatch, told of every one that ends."""

    def __init__(self, world: World, roster: Mapping[str, Place]) -> None:
        self._world = world
        self._roster = roster
        self._ended: list[Used] = []
        self._samples: dict[str, Attempt] = {}
        self._gaps: dict[str, float] = {}
        self._expected: dict[tuple[str, Effort], Estimate] = {}
        self._of_caps: Mapping[str, float] = {}
        self._told: dict[str, str] = {}
        self._told_gaps: set[str] = set()

    async def load(self, attempts: Iterable[Attempt]) -> None:
        """Take over what the ledger has of all that went before."""
        known = tuple(attempts)
        self._gaps = budget.spent_on_gaps(known)
        self._ended = list(budget.used(known))
        ended = [one for one in known if one.ended_at is not None]
        self._samples = {one.dispatch: one for one in ended[-KEPT:]}
        self._forget_old()
        self._told_gaps = {gap for gap in self._gaps if self.over(gap)}
        try:
            kept = json.loads(await self._world.ledger.meta(TOLD) or "{}")
            self._told = {str(name): str(day) for name, day in kept.items()}
        except (Unavailable, ValueError, AttributeError) as error:
            # At worst it is said once more.
            log.warning("ledger.unavailable", error=str(error))

    def heard(self, place: Place) -> None:
        """Take note of an agent that has ended; what becomes of its dispatch may take long."""
        supervisor = place.supervisor
        if supervisor is not None and supervisor.exit is not None:
            used, now = supervisor.report.usage, self._world.clock.now()
            self._sample(
                Attempt(
                    place.dispatch,
                    place.gap.id,
                    place.gap.effort,
                    place.route,
                    had_agent=True,
                    ended_at=now,
                    cost_usd=used.cost_usd,
                    tokens=used.tokens,
                )
            )

    def _sample(self, attempt: Attempt) -> None:
        """Keep in mind what an agent has used, to tell what others will."""
        self._samples[attempt.dispatch] = attempt
        for oldest in list(self._samples)[:-KEPT]:
            del self._samples[oldest]
        self._expected.clear()

    def settled(self, attempt: Attempt) -> None:
        """Take note of a dispatch that has ended."""
        self._ended += budget.used((attempt,))
        self._forget_old()
        self._sample(attempt)
        if attempt.kind is OutcomeKind.SHIPPED:
            self._gaps.pop(attempt.gap, None)
        elif attempt.cost_usd:
            self._gaps[attempt.gap] = self._gaps.get(attempt.gap, 0.0) + max(attempt.cost_usd, 0.0)

    def freed(self, gap: str) -> None:
        """Take note that a gap was freed: what was spent on it no longer counts."""
        self._gaps.pop(gap, None)

    def over(self, gap: str) -> str:
        """Say why so much was spent on a gap that it is not dispatched; empty when it may be."""
        return budget.over_budget(self._world.policies.budget, self._gaps.get(gap, 0.0))

    def held(self) -> dict[str, str]:
        """Return the gaps whose budgets are reached, and what to do about it."""
        if not self._world.policies.budget.usd_per_gap:
            return {}
        return {gap: why for gap in self._gaps if (why := self.over(gap))}

    def expected(self, backend: str, effort: Effort) -> Estimate:
        """Return what an agent is expected to use, by those that were like it."""
        caps = self._world.policies.budget.caps
        if caps != self._of_caps:
            self._of_caps = caps
            self._expected.clear()
        known = self._expected.get((backend, effort))
        if known is None:
            latest_first = reversed(self._samples.values())
            known = budget.estimate(latest_first, backend, effort, caps.get(backend, 0.0))
            self._expected[backend, effort] = known
        return known

    def outlook(self, now: datetime) -> Outlook:
        """Return what today has cost, with what agents at work have told, and what it will."""
        began, ends = self.day(now)
        ended = budget.spent_between(self._ended, began, ends)
        at_work: list[AtWork] = []
        for place in self._roster.values():
            ended = _counted(place, ended, at_work, began, now)
        return budget.outlook(ended, at_work, self.expected)

    def verdict(self, now: datetime, coming: Estimate | None = None) -> Verdict:
        """Say whether another agent may be started now, by the budgets of the day."""
        policy = self._world.policies.budget
        if not policy.is_daily:
            return Verdict()
        return budget.verdict(policy, self.outlook(now), coming or Estimate(), self.until(now))

    def verdict_on(self, gap: Gap, where: Route, now: datetime) -> Verdict:
        """Say whether this agent may be started now."""
        return self.verdict(now, self.expected(where.backend, gap.effort))

    def prospect(self, gap: Gap, where: Route, now: datetime) -> str:
        """Say what a gap is expected to cost, and of what; empty where no budget is set."""
        if not self._world.policies.budget.is_daily:
            return ""
        coming = self.expected(where.backend, gap.effort)
        usd = "an unknown amount" if coming.usd is None else budget.dollars(coming.usd)
        basis = f" (mean of {coming.alike})" if coming.alike else ""
        return f"expected to cost {usd}{basis}; today {budget.in_words(self.document(now))}"

    def document(self, now: datetime) -> dict[str, object]:
        """Return the shape of `budget` in `status --json` (behaviour C6)."""
        policy, (_, ends) = self._world.policies.budget, self.day(now)
        return budget.document(policy, self.outlook(now), ends, self.verdict(now))

    def day(self, now: datetime) -> tuple[datetime, datetime]:
        """Return when the day began and when it ends, where the daemon runs."""
        return budget.day_of(now, self._zone)

    def until(self, now: datetime) -> str:
        """Return the hour at which the day ends, by the clock of the machine."""
        return f"{self.day(now)[1].astimezone(self._zone):%H:%M}"

    @property
    def _zone(self) -> tzinfo:
        return self._world.zone("") or UTC

    async def review(self, now: datetime) -> None:
        """Tell, once each, of budgets that are reached, and of those that are so no more."""
        policy, today = self._world.policies.budget, f"{self.day(now)[0]:%Y-%m-%dT%H:%M:%SZ}"
        reached = set(self.verdict(now).reached)
        before = dict(self._told)
        if reached - before.keys():
            spent = self.outlook(now).spent
            used = {budget.USD_PER_DAY: round(spent.usd, 6), budget.TOKENS_PER_DAY: spent.tokens}
            for name in sorted(reached - before.keys()):
                limit, until = getattr(policy, name), self.until(now)
                self._tell(
                    "budget.reached", budget=name, spent=used[name], limit=limit, until=until
                )
                self._told[name] = today
        for name in sorted(before.keys() - reached):
            why = "a new day has begun" if before[name] != today else "it was raised"
            self._tell("budget.renewed", budget=name, why=why)
            del self._told[name]
        self._review_gaps()
        if self._told != before:
            try:
                await self._world.ledger.set_meta(TOLD, json.dumps(self._told))
            except Unavailable as error:
                log.warning("ledger.unavailable", error=str(error))

    def _review_gaps(self) -> None:
        held, limit = self.held(), self._world.policies.budget.usd_per_gap
        for gap in sorted(held.keys() - self._told_gaps):
            spent, name = round(self._gaps[gap], 6), budget.USD_PER_GAP
            self._tell("budget.reached", budget=name, gap=gap, spent=spent, limit=limit)
        for gap in sorted(self._told_gaps - held.keys()):
            why = "it was raised" if gap in self._gaps else "its gap was freed"
            self._tell("budget.renewed", budget=budget.USD_PER_GAP, gap=gap, why=why)
        self._told_gaps = set(held)

    def _tell(self, event: str, **fields: object) -> None:
        if event == "budget.reached":
            log.warning("budget.reached", **fields)
        else:
            log.info("budget.renewed", **fields)
        self._world.tell(event, **fields)

    def _forget_old(self) -> None:
        if len(self._ended) <= 2 * KEPT:
            return
        since = self._world.clock.now() - DAYS_KEPT
        old = self._ended[:-KEPT]
        recent = [one for one in old if one.ended_at >= since]
        self._ended = [*recent, *self._ended[-KEPT:]]


def _counted(
    place: Place, ended: Spent, at_work: list[AtWork], began: datetime, now: datetime
) -> Spent:
    """Return `ended` with a place whose agent has ended; put one that works into `at_work`."""
    supervisor = place.supervisor
    if place.settled or (supervisor is None and not place.holds_slot):
        return ended
    backend, effort = place.route.backend, place.gap.effort
    if supervisor is None:
        at_work.append(AtWork(backend, effort))
        return ended
    used = supervisor.report.usage
    if supervisor.is_running:
        at_work.append(AtWork(backend, effort, used.cost_usd, used.tokens))
        return ended
    if supervisor.follow_up.is_granted:  # the session that goes on with it is about to begin
        at_work.append(AtWork(backend, effort))
    # It waits for its request, and counts for the day on which its agent ended.
    at = supervisor.record.exited_at or now
    return ended.plus(used.cost_usd, used.tokens) if at >= began else ended
