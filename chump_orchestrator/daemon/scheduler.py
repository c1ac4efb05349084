"""Backlog, pick, route, dispatch: owns the roster, and is its only writer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import anyio
import structlog

from chump_orchestrator.core.backlog import Backlog, Hold, HoldKind
from chump_orchestrator.core.brakes import (
    ROW_OF_FAILURES,
    Fuse,
)
from chump_orchestrator.core.errors import Unavailable
from chump_orchestrator.core.gap import PERPETUAL, Gap
from chump_orchestrator.core.outcome import Outcome, OutcomeKind
from chump_orchestrator.core.picker import choose
from chump_orchestrator.core.records import Pause, Record, Usage
from chump_orchestrator.core.routing import Route, route
from chump_orchestrator.daemon.bell import Bell
from chump_orchestrator.daemon.launching import Failed, Launched, Postponed, launch
from chump_orchestrator.daemon.lookout import Lookout
from chump_orchestrator.daemon.parking import ParkedBackends
from chump_orchestrator.daemon.roster import Assignment, Place
from chump_orchestrator.daemon.settling import settle, tidy
from chump_orchestrator.daemon.standing import free_what_changed, standing
from chump_orchestrator.daemon.supervisor import Supervisor

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from chump_orchestrator.daemon.keeper import BacklogKeeper
    from chump_orchestrator.daemon.world import World

log = structlog.get_logger()

POSTPONED = timedelta(seconds=5)
LONGEST_POSTPONED = timedelta(minutes=1)
"""When no dispatch was possible, the next is tried after so long; doubles."""

PATIENCE = 5
"""So often in a row a run that is to end may find that no dispatch is possible."""

LEASE_GLANCE = timedelta(seconds=30)
"""How often others' leases are looked at while there are some."""


class Scheduler:
    """Fills free slots the moment they are free, and settles what its supervisors bring back."""

    def __init__(
        self,
        world: World,
        lookout: Lookout,
        keeper: BacklogKeeper,
        outbox: Bell,
        assignment: Assignment,
    ) -> None:
        self.world = world
        self.roster: dict[str, Place] = {}
        self.bell = Bell()
        self.draining = False
        self.last: dict[str, Outcome] = {}
        self.choice = choose(Backlog(), 0, world.policies.pick)
        self.started = 0
        self.tidying = 0
        self._lookout = lookout
        self._keeper = keeper
        self._outbox = outbox
        self._assignment = assignment
        self._backends = ParkedBackends()
        self._not_before = datetime.min.replace(tzinfo=world.clock.now().tzinfo)
        self._postponed = POSTPONED
        self._times_postponed = 0
        self._shipped_at: datetime | None = None
        self._next: datetime | None = None
        self._fuse_turn = anyio.Lock()
        self._sees_leases = False

    @property
    def running(self) -> int:
        """How many slots are held."""
        return sum(1 for place in self.roster.values() if place.holds_slot)

    async def run(self, group: TaskGroup) -> None:
        """Dispatch into `group` until draining, or until nothing is left of a limited run."""
        while not self.draining:
            try:
                await self._fill(group)
            except Unavailable as error:
                log.warning("scheduler.held_up", error=str(error))
                self._next = self.world.clock.now() + POSTPONED
            if self._is_over():
                return
            await self.bell.wait(self._until_next())

    def take_up(self, group: TaskGroup, record: Record, supervisor: Supervisor) -> None:
        """Go on with a dispatch that an earlier daemon began."""
        dispatch = record.dispatch
        place = Place(dispatch.gap, dispatch.route, dispatch.id, dispatch.attempt, supervisor)
        self.roster[dispatch.gap.id] = place
        group.start_soon(self._guarded, place, self._go_on, place, record, supervisor)

    async def standing(self) -> Backlog:
        """Return the backlog with its holds; what has changed its text is freed on the way."""
        ledger, now = self.world.ledger, self.world.clock.now()
        backlog = self._keeper.backlog
        await free_what_changed(backlog, ledger, now)
        found = await standing(
            backlog,
            ledger,
            self.world.leases,
            now,
            active={gap_id: place.dispatch for gap_id, place in self.roster.items()},
            repeat=self.world.policies.repeat,
        )
        return self._assigned(found)

    async def release(self, gap_id: str) -> None:
        """Make a gap eligible again; whatever parked it, or shipped it, no longer counts."""
        await self.world.ledger.free(gap_id, self.world.clock.now())
        log.info("gap.freed", gap=gap_id, why="an operator released it")
        self.bell.ring()

    async def pause(self, reason: str) -> None:
        """Start nothing more until resumed; lasts over restarts."""
        await self.world.ledger.set_pause(Pause("operator", reason, self.world.clock.now()))
        log.info("dispatching.paused", by="operator", reason=reason)

    async def resume(self) -> None:
        """Dispatch again: the pause, the fuse and the parked backends are forgotten."""
        ledger = self.world.ledger
        await ledger.set_pause(None)
        await self._update_fuse(lambda _: Fuse())
        self._backends.free()
        log.info("dispatching.resumed", by="operator")
        self.bell.ring()

    async def _fill(self, group: TaskGroup) -> None:
        world, now = self.world, self.world.clock.now()
        assigned = await self.standing()
        fuse = await world.ledger.fuse()
        free = await self._free_slots(fuse, now)
        await self._start_requested(group, assigned, free)
        free = max(min(free, world.policies.max_parallel - self.running), 0)
        # With a backend parked, gaps that go to another one may stand further down.
        wanted = free if not self._backends else len(assigned.gaps)
        picked = 0
        for gap in choose(assigned, wanted, world.policies.pick).picked:
            where = self._route(gap, now)
            if where is not None and picked < free and not self.draining:
                self._start(group, gap, where, is_trial=fuse.blown_until is not None)
                picked += 1
        self.choice = choose(assigned, picked, world.policies.pick)
        self._sees_leases = any(h.kind is HoldKind.LEASED for h in assigned.holds.values())
        ends = [h.until for h in assigned.holds.values() if h.until is not None and h.until > now]
        ends += self._backends.ends()
        if fuse.blown_until is not None and not fuse.trial:
            ends.append(fuse.blown_until)
        if self._not_before > now:
            ends.append(self._not_before)
        self._next = min((end for end in ends if end > now), default=None)

    async def _free_slots(self, fuse: Fuse, now: datetime) -> int:
        """Return how many agents may be started now, by every brake there is."""
        world, assigned = self.world, self._assignment
        if self.draining or await world.ledger.pause() is not None or now < self._not_before:
            return 0
        if assigned.until is not None and now >= assigned.until:
            return 0
        if self._lookout.count_open() >= world.policies.max_open_pulls:
            return 0
        # Agents that die at once free their slots before anybody can tell how they ended; while
        # the forge is silent too, a whole backlog would be thrown after them.
        free = world.policies.max_parallel - self.running
        free = min(free, max(ROW_OF_FAILURES, world.policies.max_parallel) - self._undecided())
        if assigned.limit is not None:
            free = min(free, assigned.limit - self.started)
        if free > 0 and (shortage := await world.worktrees.shortage()):
            log.warning("dispatching.short", why=shortage)
            self._not_before = now + LONGEST_POSTPONED
            return 0
        if any(place.is_trial for place in self.roster.values()):
            return 0
        return fuse.allows(now, free)

    def _undecided(self) -> int:
        """Return how many agents have ended without a request that anybody has seen."""
        supervisors = (place.supervisor for place in self.roster.values())
        return sum(1 for s in supervisors if s and not s.is_running and not s.has_open_pull)

    async def _update_fuse(self, change: Callable[[Fuse], Fuse]) -> None:
        """Change the fuse on record; one at a time, as every dispatch does so."""
        async with self._fuse_turn:
            before = await self.world.ledger.fuse()
            after = change(before)
            if after != before:
                await self.world.ledger.set_fuse(after)
        if after.blown_until is not None and before.blown_until is None:
            log.error("dispatching.paused", by="fuse", cause=after.cause)

    async def _start_requested(self, group: TaskGroup, backlog: Backlog, free: int) -> None:
        """Dispatch what an operator has asked for by name, ahead of all else (behaviour X2)."""
        for gap_id in await self.world.ledger.requested():
            gap = backlog.index.gaps.get(gap_id)
            if gap is None:
                await self.world.ledger.request_done(gap_id)
                log.warning("request.dropped", gap=gap_id, why="it is not in the backlog")
            elif gap_id not in self.roster and free > 0:
                free -= 1
                await self.world.ledger.request_done(gap_id)
                await self.world.ledger.free(gap_id, self.world.clock.now())
                self._start(group, gap, route(gap, self.world.policies.routes)[0])

    def _assigned(self, found: Backlog) -> Backlog:
        """Hold what this run is not for, and in a single run what has had its turn already."""
        wanted, holds = self._assignment.gaps, {}
        if wanted:
            rest = Hold(HoldKind.RESTING, "this run is for other gaps (--gap)")
            holds = {gap.id: rest for gap in found.gaps if gap.id not in wanted}
        if self._assignment.once:
            had = Hold(HoldKind.RESTING, "it has had its run")
            perpetual = (gap.id for gap in found.gaps if gap.status == PERPETUAL)
            holds |= {gap_id: had for gap_id in perpetual if gap_id in self.last}
        return found.with_holds({**holds, **found.holds}, found.shipped) if holds else found

    def _route(self, gap: Gap, now: datetime) -> Route | None:
        """Return the first candidate whose backend is not parked, or `None` (behaviour G5)."""
        return self._backends.first_usable(route(gap, self.world.policies.routes), now)

    def _start(self, group: TaskGroup, gap: Gap, where: Route, *, is_trial: bool = False) -> None:
        place = Place(gap, where, is_trial=is_trial)
        self.roster[gap.id] = place
        self.started += 1
        group.start_soon(self._guarded, place, self._dispatch, place)

    async def _guarded(
        self, place: Place, work: Callable[..., Awaitable[None]], *args: object
    ) -> None:
        """Keep what goes wrong in one dispatch from every other one.

        Its gap stays on the roster, without a slot, so that nothing starts it a second time; the
        next start of the daemon takes it up from its record.
        """
        try:
            await work(*args)
        except Exception:
            log.exception("dispatch.broken", gap=place.gap.id, dispatch=place.dispatch)
            place.broken = True
            self.bell.ring()

    async def _dispatch(self, place: Place) -> None:
        """Carry one dispatch from its launch to its end; nothing it does harms another."""

        def note(dispatch_id: str) -> None:
            place.dispatch = dispatch_id

        with anyio.CancelScope(shield=True):
            # A launch is short and bounded; it is never torn in the middle.
            result = await launch(
                self.world, place.gap, place.route, fresh_base=self._shipped_at, on_id=note
            )
            if not isinstance(result, Postponed):
                place.attempt = result.record.dispatch.attempt
                if place.is_trial:
                    await self._update_fuse(lambda fuse: fuse.started(place.dispatch))
        match result:
            case Postponed(reason):
                self.started -= 1
                self._postpone(reason)
                self._leave(place)
            case Failed() as failed:
                if failed.backend_at_fault:
                    self._backends.park(
                        place.route.backend, failed.outcome.reason, self.world.clock.now()
                    )
                    self.started -= 1
                await self._settle(place, failed.record, failed.outcome, failed=failed)
            case Launched(record, agent):
                self._postponed, self._times_postponed = POSTPONED, 0
                self._backends.free(place.route.backend)
                supervisor = Supervisor(self.world, self._lookout, record, agent, self.bell.ring)
                place.supervisor = supervisor
                if place.stop_asked is not None:
                    supervisor.request_stop(place.stop_asked[0], now=place.stop_asked[1])
                await self._go_on(place, record, supervisor)

    async def _go_on(self, place: Place, record: Record, supervisor: Supervisor) -> None:
        dispatch = record.dispatch
        structlog.contextvars.bind_contextvars(
            gap=dispatch.gap.id,
            dispatch=dispatch.id,
            backend=dispatch.route.backend,
            attempt=dispatch.attempt,
        )
        outcome = await supervisor.watch()
        await self._settle(place, supervisor.record, outcome, supervisor=supervisor)

    async def _settle(
        self,
        place: Place,
        record: Record,
        outcome: Outcome,
        *,
        supervisor: Supervisor | None = None,
        failed: Failed | None = None,
    ) -> None:
        siblings = self.running - (1 if place.holds_slot else 0)
        settled = await settle(
            self.world,
            record,
            outcome,
            agent=supervisor.agent if supervisor else None,
            siblings=siblings,
            usage=supervisor.usage if supervisor else Usage(),
            lease_ends_at=failed.lease_ends_at if failed else None,
            backend_at_fault=bool(failed and failed.backend_at_fault),
        )
        with anyio.CancelScope(shield=True):
            now = self.world.clock.now()
            await self._update_fuse(lambda fuse: fuse.ended(record.dispatch.id, settled, now))
            if settled.kind is OutcomeKind.SHIPPED:
                self._shipped_at = now
        self.last[place.gap.id] = settled
        self._outbox.ring()
        self.tidying += 1
        self._leave(place)
        try:
            await tidy(self.world, record)
        finally:
            self.tidying -= 1
            self.bell.ring()

    def _leave(self, place: Place) -> None:
        self.roster.pop(place.gap.id, None)
        self.bell.ring()

    def _postpone(self, reason: str) -> None:
        log.warning("dispatching.postponed", reason=reason, for_s=self._postponed.total_seconds())
        self._not_before = self.world.clock.now() + self._postponed
        self._times_postponed += 1
        self._postponed = min(self._postponed * 2, LONGEST_POSTPONED)

    async def why_waiting(self, gap: Gap) -> str:
        """Return what keeps an eligible gap from its turn, beside the slots; or empty."""
        ledger = self.world.ledger
        if pause := await ledger.pause():
            return f"paused by {pause.by}: {pause.reason or 'no reason given'}"
        fuse = await ledger.fuse()
        if fuse.blown_until is not None:
            until = f"{fuse.blown_until:%Y-%m-%dT%H:%M:%SZ}"
            return f"paused until {until}, after a row of failures: {fuse.cause}"
        assigned = self._assignment
        if assigned.limit is not None and self.started >= assigned.limit:
            return f"this run starts no more than {assigned.limit} agents (--limit)"
        if assigned.until is not None and self.world.clock.now() >= assigned.until:
            return "its time is over (--until)"
        return self._backend_trouble(gap)

    def _backend_trouble(self, gap: Gap) -> str:
        candidates = route(gap, self.world.policies.routes)
        if self._backends.first_usable(candidates, self.world.clock.now()) is not None:
            return ""
        return self._backends.why(candidates)

    def _until_next(self) -> timedelta | None:
        if self._next is None:
            return LEASE_GLANCE if self._sees_leases else None
        left = self._next - self.world.clock.now()
        return max(left, timedelta(milliseconds=10))

    def _is_over(self) -> bool:
        """Whether a run that is limited has nothing left to wait for (behaviour C8)."""
        if not self._assignment.once or any(not place.broken for place in self.roster.values()):
            return False
        now = self.world.clock.now()
        if self._not_before > now and self.choice.waiting and self._times_postponed < PATIENCE:
            return False
        return not self._comes_by_itself()

    def _comes_by_itself(self) -> bool:
        assigned = self._assignment
        if assigned.limit is not None and self.started >= assigned.limit:
            return False
        return any(r.reason.startswith(HoldKind.BACKOFF) for r in self.choice.refused)
