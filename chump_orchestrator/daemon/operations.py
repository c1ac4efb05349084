"""What an operator may ask of a running daemon, and what it answers."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import anyio

from chump_orchestrator.core.errors import Refused, Unavailable
from chump_orchestrator.core.gap import Rejection
from chump_orchestrator.core.outcome import StopReason
from chump_orchestrator.core.picker import choose
from chump_orchestrator.core.records import ForgeBudget, Vitals
from chump_orchestrator.core.testimony import Report
from chump_orchestrator.daemon.orchestrator import Manner
from chump_orchestrator.daemon.reopening import former_of

if TYPE_CHECKING:
    from chump_orchestrator.core.gap import Gap
    from chump_orchestrator.core.records import Record
    from chump_orchestrator.daemon.orchestrator import Orchestrator
    from chump_orchestrator.daemon.roster import Place

SCHEMA_VERSION = 1

LEDGER_PATIENCE_S = 0.5
"""How long a status waits for what only the ledger knows."""

LINE_SHOWN = 240
"""Characters of an agent's last telling line that a status carries."""


class Operator:
    """Answers the control socket. Every answer is quick: what takes time is only begun here."""

    def __init__(self, orchestrator: Orchestrator) -> None:
        self._daemon = orchestrator
        self._scheduler = orchestrator.scheduler

    async def status(self) -> dict[str, object]:
        """Return the shape of `status --json` (behaviour C6)."""
        daemon, scheduler = self._daemon, self._scheduler
        pause, fuse = scheduler.brakes.pause, scheduler.brakes.fuse
        paused = pause is not None or fuse.blown_until is not None
        state = "paused" if daemon.state == "running" and paused else daemon.state
        return {
            "schema_version": SCHEMA_VERSION,
            "daemon": {
                "pid": os.getpid(),
                "state": state,
                "since": f"{daemon.since:%Y-%m-%dT%H:%M:%SZ}",
                "paused_by": scheduler.brakes.why() if paused else "",
                "backlog_problem": daemon.keeper.problem,
                "forge_silent_s": self._forge_silent_s(),
                "forge": self._forge(),
                "loop": self._loop(),
            },
            "slots": {"used": scheduler.running, "total": daemon.world.policies.max_parallel},
            "ready": len(scheduler.choice.waiting),
            "budget": scheduler.admission.spending.document(daemon.world.clock.now()),
            "pause": pause
            and {
                "by": pause.by,
                "reason": pause.reason,
                "since": f"{pause.since:%Y-%m-%dT%H:%M:%SZ}",
            },
            "settled": Counter(str(outcome.kind) for outcome in scheduler.last.values()),
            "dispatches": [self._dispatch(place) for place in scheduler.roster.values()],
            "parked": await self._parked(),
        }

    def why_not_ready(self) -> str:
        """Return why the daemon is not ready for work, empty when it is; a pause is no such."""
        if self._daemon.ending is not None:
            return f"{self._daemon.state}: nothing is started any more"
        if not self._daemon.is_ready:
            return "starting: what an earlier daemon left is being taken up"
        return ""

    async def vitals(self) -> Vitals:
        """Return how the daemon fares, in numbers; within a second (promise I5)."""
        world, scheduler, lookout = self._daemon.world, self._scheduler, self._daemon.lookout
        alive = [p.supervisor for p in scheduler.roster.values() if p.supervisor and p.holds_slot]
        parked: int | None = None
        outbox: int | None = None
        with anyio.move_on_after(LEDGER_PATIENCE_S), contextlib.suppress(Unavailable):
            parked = len(await world.ledger.parked())
            outbox = len(await world.ledger.outbox())
        brakes = scheduler.brakes
        return Vitals(
            is_ready=not self.why_not_ready(),
            is_paused=brakes.pause is not None or brakes.fuse.blown_until is not None,
            running=scheduler.running,
            overdue=sum(1 for supervisor in alive if supervisor.overdue),
            silent=sum(1 for supervisor in alive if supervisor.silent),
            slots=world.policies.max_parallel,
            ready=len(scheduler.choice.waiting),
            open_pulls=lookout.count_open(),
            is_backlog_stale=bool(self._daemon.keeper.problem),
            looks=lookout.looks,
            failed_looks=dict(lookout.failures),
            forge_silent_s=self._forge_silent_s() or 0.0,
            unstored=world.unstored,
            parked=parked,
            outbox=outbox,
            budget=scheduler.admission.spending.document(world.clock.now()),
            forge_budget=self._forge_budget(),
            turns=world.turns.taken(world.clock.monotonic()),
        )

    async def stop(self, gap: str, now: bool) -> str:  # noqa: FBT001 - as it comes in a request
        """Stop the agent of a gap, or wait no longer for what came of one that has ended.

        `Refused` when the gap has no dispatch under way.
        """
        place = self._scheduler.roster.get(gap)
        if place is None:
            msg = f"{gap} has no dispatch under way; see status"
            raise Refused(msg)
        is_running = place.holds_slot
        place.request_stop(StopReason.OPERATOR, now=now)
        what = place.dispatch or "being dispatched"
        if is_running:
            return f"stopping {gap} ({what})"
        return f"giving up {gap} ({what}); its agent has ended, and its request is left alone"

    async def drain(self) -> str:
        """Start nothing more, and end when the last agent has."""
        self._daemon.end(Manner.DRAIN)
        return f"draining: {self._scheduler.running} agents still running"

    def detach(self) -> None:
        """End and leave the agents to their shims; the next daemon takes them up."""
        self._daemon.end(Manner.DETACH)

    async def reload(self) -> str:
        """Read settings and backlog again; `Refused` with what was wrong, the old ones stay."""
        if problems := await self._daemon.reload():
            raise Refused(problems)
        return "reloaded"

    async def pause(self, reason: str) -> str:
        """Start nothing more until resumed."""
        await self._scheduler.pause(reason)
        self._daemon.world.tell("dispatching.paused", by="operator", reason=reason)
        return f"paused; {self._scheduler.running} agents go on"

    async def resume(self) -> str:
        """Dispatch again."""
        await self._scheduler.resume()
        self._daemon.world.tell("dispatching.resumed", by="operator")
        spent = self._spent()
        still = f"; but {spent}" if spent else ""
        return f"resumed{still}{self._ending()}"

    def _spent(self) -> str:
        """Say which budget of the day is reached, and until when; empty while none is."""
        now = self._daemon.world.clock.now()
        found = self._scheduler.admission.spending.verdict(now)
        return found.reason if found.reached else ""

    async def retry(self, gap: str, *, resume: bool = False) -> str:
        """Dispatch a gap as soon as there is a slot, whatever has become of it before.

        With `resume` its last session is gone on with; `Refused` with why that cannot be.
        """
        entry = self._known(gap)
        if isinstance(entry, Rejection):
            msg = f"{gap} was left out of the backlog: {entry.reason}"
            raise Refused(msg)
        self._not_under_way(gap)
        if spent := self._spent():
            msg = f"{gap} is not dispatched: {spent}"
            raise Refused(msg)
        world, what = self._daemon.world, "dispatched next"
        if resume:
            former = await former_of(gap, world.ledger, world.worktrees.holder, world.backend)
            what = f"gone on with next, in the session of {former.dispatch.id}"
        await world.ledger.request_dispatch(gap, resume=0 if resume else None)
        self._scheduler.bell.ring()
        held = self._scheduler.brakes.why()
        later = f"; but not yet: {held}" if held else self._ending()
        return f"{gap} is {what}{later}"

    async def release(self, gap: str) -> str:
        """Free a gap: it is eligible again."""
        self._known(gap)
        self._not_under_way(gap)
        await self._scheduler.release(gap)
        self._daemon.world.tell("gap.freed", gap=gap, why="an operator released it")
        return f"{gap} is free"

    async def why(self, gap: str) -> str:
        """Say where a gap stands, or why it is not picked (behaviour K5)."""
        place = self._scheduler.roster.get(gap)
        if place is not None:
            pull = place.supervisor.pull if place.supervisor else None
            told = f"; {pull.in_words}" if pull is not None and pull.in_words else ""
            return f"active: {place.dispatch or 'being dispatched'}{told}"
        standing = await self._scheduler.standing()
        reasons = choose(standing, 0, self._daemon.world.policies.pick).reasons()
        found = {refusal.id: refusal.reason for refusal in reasons}
        entry = self._known(gap)
        if gap not in found:
            return f"its status is {entry.status or 'missing'}"
        known = standing.index.gaps.get(gap)
        if known is None:
            return found[gap]
        trouble, is_held = "", not found[gap].startswith("no slot")
        if not is_held:
            trouble = self._scheduler.why_waiting(known) or self._prospect(known)
        return "; ".join(filter(None, (found[gap], trouble, self._walk(known, is_held=is_held))))

    def _prospect(self, gap: Gap) -> str:
        """Say what a gap that only waits for a slot is expected to cost."""
        admission, now = self._scheduler.admission, self._daemon.world.clock.now()
        where = admission.route(gap, now)
        return "" if where is None else admission.spending.prospect(gap, where, now)

    def _walk(self, gap: Gap, *, is_held: bool) -> str:
        """Return the candidates of a gap with what became of each, where there are several."""
        now = self._daemon.world.clock.now()
        told = self._scheduler.admission.cascade.standings(gap, now, is_held=is_held)
        return f"candidates: {', '.join(map(str, told))}" if len(told) > 1 else ""

    async def _parked(self) -> list[dict[str, object]] | None:
        """Return the parked gaps; `None` when the ledger does not say at once (promise I5)."""
        with anyio.move_on_after(LEDGER_PATIENCE_S):
            return [
                {
                    "gap": one.gap,
                    "reason": one.reason,
                    "since": f"{one.since:%Y-%m-%dT%H:%M:%SZ}",
                    "until": one.until and f"{one.until:%Y-%m-%dT%H:%M:%SZ}",
                }
                for one in await self._daemon.world.ledger.parked()
            ]
        return None

    def _known(self, gap: str) -> Gap | Rejection:
        entry = self._daemon.keeper.backlog.find(gap)
        if entry is None:
            msg = f"{gap} is not in the backlog"
            raise Refused(msg)
        return entry

    def _not_under_way(self, gap: str) -> None:
        if gap in self._scheduler.roster:
            msg = f"{gap} has a dispatch under way; stop it first, or wait for its end"
            raise Refused(msg)

    def _ending(self) -> str:
        return "" if self._daemon.ending is None else f"; but this daemon is {self._daemon.state}"

    def _forge_silent_s(self) -> float | None:
        since_s = self._daemon.lookout.failing_since_s
        if since_s is None:
            return None
        return round(self._daemon.world.clock.monotonic() - since_s, 1)

    def _forge_budget(self) -> ForgeBudget | None:
        """Return what the forge grants; `None` where its provider knows of no budget."""
        budget = getattr(self._daemon.world.pulls, "budget", None)
        return budget if isinstance(budget, ForgeBudget) else None

    def _forge(self) -> dict[str, object] | None:
        budget = self._forge_budget()
        if budget is None:
            return None
        return {
            "requests": budget.requests,
            "points": budget.points,
            "points_left": budget.left,
            "points_limit": budget.limit,
            "resets_at": budget.resets_at and f"{budget.resets_at:%Y-%m-%dT%H:%M:%SZ}",
        }

    def _loop(self) -> dict[str, object] | None:
        world = self._daemon.world
        taken = world.turns.taken(world.clock.monotonic())
        if taken is None:
            return None
        return {
            "turns": sum(taken.counts),
            "slow_turns": taken.slow,
            "longest_turn_ms": round(taken.longest_s * 1e3, 1),
        }

    def _dispatch(self, place: Place) -> dict[str, object]:
        supervisor = place.supervisor
        record = supervisor.record if supervisor else None
        agent = supervisor.agent if supervisor else None
        pull = supervisor.pull if supervisor else None
        workspace = record.workspace if record else None
        running = supervisor is not None and supervisor.is_running
        soft = self._daemon.world.policies.deadlines.of(place.gap).soft
        if record is not None:
            soft = record.dispatch.deadlines.soft
        return {
            "id": place.dispatch,
            "gap": place.gap.id,
            "attempt": place.attempt,
            "resumed_from": _resumed_from(record),
            "state": _state(place),
            "backend": place.route.backend,
            "model": place.route.model or None,
            "pid": agent.pid if agent is not None and running else None,
            "branch": workspace.branch if workspace else None,
            "worktree": workspace.path if workspace else None,
            "elapsed_s": round(supervisor.active().total_seconds(), 1) if supervisor else 0.0,
            "soft_deadline_s": soft.total_seconds(),
            "overdue": supervisor.overdue if supervisor else False,
            "silent_s": round(supervisor.quiet().total_seconds(), 1)
            if supervisor is not None and agent is not None and running
            else None,
            "last_line": _last_line(agent.tail()) if agent else None,
            "pull": None if pull is None or pull.state == "none" else pull.facts(),
            "shipping": record and record.shipment and str(record.shipment.stage),
            **(supervisor.report if supervisor else Report()).facts(),
        }


def _resumed_from(record: Record | None) -> str | None:
    resumed = record.dispatch.resumed if record else None
    return resumed.dispatch if resumed else None


def _state(place: Place) -> str:
    if place.broken:
        return "broken"
    if place.settled or place.supervisor is None:
        return "settled" if place.settled else "planned"
    return str(place.supervisor.record.state)


def _last_line(tail: Sequence[str]) -> str | None:
    return tail[-1][:LINE_SHOWN] if tail else None
