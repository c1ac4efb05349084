"""Backlog, pick, route, dispatch: owns the roster, and is its only writer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import anyio
import structlog

from chump_orchestrator.core.backlog import Backlog, Hold, HoldKind
from chump_orchestrator.core.errors import Unavailable
from chump_orchestrator.core.gap import Gap
from chump_orchestrator.core.outcome import Outcome, OutcomeKind, StopReason
from chump_orchestrator.core.picker import choose
from chump_orchestrator.core.records import Pause, Record
from chump_orchestrator.core.routing import Route
from chump_orchestrator.daemon.admission import Admission
from chump_orchestrator.daemon.bell import Bell
from chump_orchestrator.daemon.brakes import Brakes
from chump_orchestrator.daemon.ending import Ending
from chump_orchestrator.daemon.follow_up import grant
from chump_orchestrator.daemon.launching import Failed, Launched, Postponed, Unwanted, launch
from chump_orchestrator.daemon.lookout import Lookout
from chump_orchestrator.daemon.recovery import TakenUp, regain
from chump_orchestrator.daemon.roster import Assignment, Place
from chump_orchestrator.daemon.settling import attempt_of, met_by, settle, tidy_patiently
from chump_orchestrator.daemon.standing import free_what_changed, standing
from chump_orchestrator.daemon.supervisor import Supervisor
from chump_orchestrator.daemon.wishes import Wish, not_begun, wishes

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from chump_orchestrator.core.dispatch import Dispatch
    from chump_orchestrator.daemon.keeper import BacklogKeeper
    from chump_orchestrator.daemon.world import World

log = structlog.get_logger()

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
        self._lookout = lookout
        self._keeper = keeper
        self._outbox = outbox
        self._assignment = assignment
        self.shipped_at: datetime | None = None
        self._next: datetime | None = None
        self._sees_leases = False
        self._is_held_up = False
        self.brakes = Brakes(world.ledger, world.clock, world.tell)
        self.admission = Admission(world, self.brakes, self.roster, lookout, assignment)
        self._ending = Ending(world, self.brakes, self.admission, assignment)

    @property
    def running(self) -> int:
        """How many slots are held."""
        return sum(1 for place in self.roster.values() if place.holds_slot)

    async def run(self, group: TaskGroup) -> None:
        """Dispatch into `group` until draining, or until nothing is left of a single run."""
        while not self.draining:
            try:
                await self._fill(group)
                self._is_held_up = False
            except Unavailable as error:
                self._is_held_up = True
                self.brakes.postpone(str(error))
                self._next = min(self.brakes.ends(self.world.clock.now()))
            held_up = self._is_held_up
            if self._ending.is_over(self.roster, self.choice, self.started, is_held_up=held_up):
                return
            await self.bell.wait(self._until_next())

    def take_up(self, group: TaskGroup, taken: TakenUp) -> None:
        """Go on with a dispatch that an earlier daemon began."""
        dispatch = taken.record.dispatch
        place = Place(dispatch.gap, dispatch.route, dispatch.id, dispatch.attempt)
        if taken.is_reachable:
            place.supervisor = self._supervisor(place, taken)
            if place.supervisor.exit is not None:
                self._hear_end(place)
        self.roster[dispatch.gap.id] = place
        group.start_soon(self._guarded, place, self._take_up, place, taken)

    async def _take_up(self, place: Place, taken: TakenUp) -> None:
        if not taken.is_reachable:
            # It may still have its agent: neither lost nor to be started again, and in its slot.
            taken = await regain(self.world, taken.record)
        if place.supervisor is None:
            place.supervisor = self._supervisor(place, taken)
            if place.stop_asked is not None:
                place.supervisor.request_stop(place.stop_asked[0], now=place.stop_asked[1])
        await self._go_on(place, place.supervisor)

    def _supervisor(self, place: Place, taken: TakenUp) -> Supervisor:
        def on_change() -> None:
            if place.siblings is None and not place.holds_slot:
                place.siblings = self.running
                self._hear_end(place)
            self.bell.ring()

        return Supervisor(self.world, self._lookout, taken.record, taken.agent, on_change)

    def _hear_end(self, place: Place) -> None:
        """Learn at once from an agent's last words, before its slot is filled again."""
        self.admission.spending.heard(place)
        if place.supervisor is not None and (met := met_by(self.world, place.supervisor)):
            cause, how, until = met
            self.brakes.rest(place.route, cause, how, until)
            place.has_rested = True

    async def standing(self) -> Backlog:
        """Return the backlog with its holds; what has changed its text is freed on the way."""
        ledger, now = self.world.ledger, self.world.clock.now()
        backlog = self._keeper.backlog

        def tell(event: str, **fields: object) -> None:
            self.admission.freed(str(fields["gap"]))
            self.world.tell(event, **fields)

        await free_what_changed(backlog, ledger, now, tell)
        found = await standing(
            backlog,
            ledger,
            self.world.leases,
            now,
            active={gap_id: place.dispatch for gap_id, place in self.roster.items()},
            repeat=self.world.policies.repeat,
        )
        return self._assignment.restrict(self.admission.within_budgets(found), self.last)

    async def release(self, gap_id: str) -> None:
        """Make a gap eligible again; whatever parked it, or shipped it, no longer counts."""
        await self.world.ledger.free(gap_id, self.world.clock.now())
        self.admission.freed(gap_id)
        log.info("gap.freed", gap=gap_id, why="an operator released it")
        self.bell.ring()

    async def pause(self, reason: str) -> None:
        """Start nothing more until resumed; lasts over restarts."""
        await self.brakes.set_pause(Pause("operator", reason, self.world.clock.now()))
        log.info("dispatching.paused", by="operator", reason=reason)

    async def resume(self) -> None:
        """Dispatch again: the pause, the fuse and the parked backends are forgotten."""
        await self.brakes.resume()
        for place in self.roster.values():
            place.is_trial = False
        log.info("dispatching.resumed", by="operator")
        self.bell.ring()

    async def _fill(self, group: TaskGroup) -> None:
        world, brakes, now = self.world, self.brakes, self.world.clock.now()
        await self.admission.spending.review(now)
        assigned = await self.standing()
        free = 0
        if not self.draining:
            free = await self.admission.free_slots(now, self.running, self.started)
        is_full = self.admission.is_full
        if asked := await self._start_requested(group, assigned, free, now, is_full=is_full):
            free -= len(asked)
            begun = dict.fromkeys(asked, Hold(HoldKind.ACTIVE, "being dispatched"))
            assigned = assigned.with_holds({**assigned.holds, **begun}, assigned.shipped)
        waiting = [place.supervisor for place in self.roster.values() if place.supervisor]
        free -= grant(waiting, free, lambda one: self._may_follow(one, assigned, now))
        if is_full:
            free = 0
        # With a backend parked, gaps that go to another one may stand further down.
        wanted = free if not brakes.backends else len(assigned.gaps)
        picked = 0
        for gap in choose(assigned, wanted, world.policies.pick).picked:
            where = self.admission.route(gap, now)
            if where is None or picked >= free or self.draining:
                continue
            if not self.admission.can_pay(gap, where, now):
                break
            self._start(group, gap, where)
            picked += 1
        self.choice = choose(assigned, picked, world.policies.pick)
        self._sees_leases = any(h.kind is HoldKind.LEASED for h in assigned.holds.values())
        ends = [h.until for h in assigned.holds.values() if h.until is not None and h.until > now]
        self._next = min((*ends, *self.admission.ends(now)), default=None)

    def _may_follow(self, dispatch: Dispatch, backlog: Backlog, now: datetime) -> bool:
        """Whether a session that goes on with a dispatch would be started now."""
        gap, only = dispatch.gap, self._assignment.gaps
        if gap.id not in backlog.index.gaps or (only and gap.id not in only):
            return False
        if self.brakes.fuse.blown_until is not None or self.admission.spending.over(gap.id):
            return False
        return self.admission.wanted(gap, now, dispatch.route) is not None

    async def _start_requested(
        self, group: TaskGroup, backlog: Backlog, free: int, now: datetime, *, is_full: bool
    ) -> list[str]:
        """Dispatch what an operator has asked for by name, ahead of all else (behaviour X2)."""

        def begin(wish: Wish) -> None:
            if wish.reopening is None:
                self.admission.freed(wish.gap.id)
            self._start(group, wish.gap, wish.route, wish)

        begun = await wishes(
            self.world,
            backlog,
            free,
            is_full=is_full,
            only=self._assignment.gaps,
            under_way=self.roster,
            routed=lambda gap, begun_at: self.admission.wanted(gap, now, begun_at),
            begin=begin,
        )
        return [wish.gap.id for wish in begun]

    def _start(self, group: TaskGroup, gap: Gap, where: Route, wish: Wish | None = None) -> None:
        is_trial = self.brakes.fuse.blown_until is not None
        place = Place(gap, where, is_trial=is_trial, wish=wish)
        self.roster[gap.id] = place
        self.started += 1
        group.start_soon(self._guarded, place, self._dispatch, place)

    async def _guarded(
        self, place: Place, work: Callable[..., Awaitable[None]], *args: object
    ) -> None:
        """Keep a bug in one dispatch from every other one.

        Its gap stays on the roster, and nothing starts it again before the next start, which takes
        it up from its record; its agent stays in reach of a stop.
        """
        try:
            await work(*args)
        except Exception:
            log.exception("dispatch.broken", gap=place.gap.id, dispatch=place.dispatch)
            was_broken, place.broken = place.broken, True
            self.bell.ring()
            if place.supervisor is not None and not (was_broken or place.settled):
                await self._guarded(place, place.supervisor.mind)

    async def _dispatch(self, place: Place) -> None:
        """Carry one dispatch from its launch to its end; nothing it does harms another."""

        def note(dispatch_id: str) -> None:
            place.dispatch = dispatch_id

        result = await launch(
            self.world,
            place.gap,
            place.route,
            fresh_base=self.shipped_at,
            on_id=note,
            is_wanted=lambda: place.stop_asked is None and not self.draining,
            making=place.making,
            reopening=place.wish.reopening if place.wish else None,
        )
        if isinstance(result, Launched | Failed):
            place.attempt = result.record.dispatch.attempt
            if place.is_trial:
                await self.brakes.change_fuse(lambda fuse: fuse.started(place.dispatch))
        match result:
            case Postponed(reason, is_lasting):
                self.brakes.postpone(reason, is_lasting=is_lasting)
                await self._not_begun(place)
            case Unwanted():
                await self._not_begun(place)
            case Failed() as failed:
                if failed.backend_at_fault:
                    self.brakes.backends.park(
                        place.route.backend, failed.outcome.reason, self.world.clock.now()
                    )
                    self.started -= 1
                await self._settle(place, failed.record, failed.outcome, failed=failed)
            case Launched(record, agent):
                self.brakes.succeeded()
                self.brakes.backends.free(place.route.backend)
                await self._take_up(place, TakenUp(record, agent))

    async def _not_begun(self, place: Place) -> None:
        """Take back the place of a dispatch of which nothing is left."""
        self.started -= 1
        stopped = place.stop_asked is not None and place.stop_asked[0] is StopReason.OPERATOR
        try:
            await not_begun(self.world, place.gap, place.wish, is_stopped=stopped)
        finally:
            self._leave(place)

    async def _go_on(self, place: Place, supervisor: Supervisor) -> None:
        dispatch = supervisor.record.dispatch
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
        report = supervisor.report if supervisor else record.report
        is_backends = bool(failed and failed.backend_at_fault)
        cascade, taken = self.admission.cascade, supervisor.follow_up.taken if supervisor else 0
        settled = await settle(
            self.world,
            record,
            outcome,
            agent=supervisor.agent if supervisor else None,
            siblings=siblings if place.siblings is None else place.siblings,
            report=report,
            lease_ends_at=failed.lease_ends_at if failed else None,
            backend_at_fault=is_backends,
            heir=lambda ended: cascade.heir(record, ended, is_excused=is_backends),
            accepted_usd=supervisor.accepted_usd if supervisor else None,
            resume=taken,
        )
        now = self.world.clock.now()
        place.settled, place.is_trial = True, False
        heir = cascade.heir(record, settled, is_excused=is_backends)
        is_excused = is_backends or settled.met_limit or heir is not None
        attempt = attempt_of(record, settled, report.usage, now, is_excused=is_excused)
        cascade.settled(attempt, heir)
        self.admission.spending.settled(attempt)
        self.last.pop(place.gap.id, None)
        self.last[place.gap.id] = settled
        if settled.kind is OutcomeKind.SHIPPED:
            self.shipped_at = now
        with anyio.CancelScope(shield=True):
            if taken:  # its request has not failed yet: another session goes on with it
                await self.brakes.change_fuse(lambda fuse: fuse.forgotten(record.dispatch.id))
            else:
                if not place.has_rested:
                    self.brakes.met(record.dispatch.route, settled)
                has_heir = heir is not None
                await self.brakes.settled(record.dispatch, settled, now, has_heir=has_heir)
        self._outbox.ring()
        self.bell.ring()
        # Its gap stays on the roster until its place in the repository is free again.
        await tidy_patiently(self.world, record)
        self._leave(place)

    def _leave(self, place: Place) -> None:
        self.roster.pop(place.gap.id, None)
        self.bell.ring()

    def why_waiting(self, gap: Gap) -> str:
        """Return what keeps an eligible gap from its turn, beside the slots; or empty."""
        if self.draining:
            return "this daemon starts nothing any more"
        return self.admission.why_waiting(gap, self.started)

    def _until_next(self) -> timedelta | None:
        waits = [LEASE_GLANCE] if self._sees_leases else []
        if self._next is not None:
            left = self._next - self.world.clock.now()
            waits.append(max(left, timedelta(milliseconds=10)))
        patience_s = filter(None, map(self._ending.patience_s, self.roster.values()))
        waits += (timedelta(seconds=left_s) for left_s in patience_s)
        return min(waits, default=None)
