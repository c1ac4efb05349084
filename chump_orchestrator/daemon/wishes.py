"""What is wanted by name, ahead of all else: a new attempt, or the last session (X2)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from chump_orchestrator.core.brakes import fingerprint
from chump_orchestrator.core.errors import Refused
from chump_orchestrator.core.outcome import STOPPED_BY_OPERATOR, Outcome, OutcomeKind
from chump_orchestrator.core.records import Parked
from chump_orchestrator.core.resuming import offer
from chump_orchestrator.daemon.reopening import Reopening, former_of

if TYPE_CHECKING:
    from chump_orchestrator.core.backlog import Backlog
    from chump_orchestrator.core.gap import Gap
    from chump_orchestrator.core.routing import Route
    from chump_orchestrator.daemon.world import World

log = structlog.get_logger()

Routed = Callable[["Gap", "Route | None"], "Route | None"]
"""Returns where a gap goes, `None` for not now; a session goes where it was begun."""


@dataclass(frozen=True, slots=True)
class Wish:
    """A gap to be dispatched now, and how; `reopening` of `None` is a new attempt."""

    gap: Gap
    route: Route
    reopening: Reopening | None = None


async def wishes(
    world: World,
    backlog: Backlog,
    free: int,
    *,
    is_full: bool,
    only: Collection[str],
    under_way: Container[str],
    routed: Routed,
    begin: Callable[[Wish], None],
) -> tuple[Wish, ...]:
    """Return what was begun of that, as far as there were `free` slots, oldest first.

    `begin` is called for each before the next is routed: budgets count what is at work.

    With `is_full` so many requests are open that nothing is begun that would open another one.
    `only` are the gaps that the run is for, empty for all. What cannot be done any more is
    dropped, and told; what cannot be done now waits. A wish for a new attempt is taken back and
    its gap freed here; one for a session is fulfilled when its dispatch is on record.
    """
    granted: list[Wish] = []
    ledger, now = world.ledger, world.clock.now()
    sessions = await ledger.resumptions()
    for gap_id in await ledger.requested():
        if only and gap_id not in only:
            continue
        gap = backlog.index.gaps.get(gap_id)
        if gap is None:
            await _drop(world, gap_id, "it is not in the backlog")
            continue
        if gap_id in under_way or len(granted) >= free:
            continue
        if is_full and not sessions.get(gap_id):
            continue
        reopening, begun_at = None, None
        if gap_id in sessions:
            try:
                former = await former_of(gap_id, ledger, world.worktrees.holder, world.backend)
            except Refused as error:
                await _drop(world, gap_id, str(error))
                continue
            reopening, begun_at = Reopening(former, sessions[gap_id]), former.dispatch.route
        where = routed(gap, begun_at)
        if where is None:
            continue
        if reopening is None:
            await ledger.request_done(gap_id)
            await ledger.free(gap_id, now)
        wish = Wish(gap, where, reopening)
        granted.append(wish)
        begin(wish)
    return tuple(granted)


async def not_begun(world: World, gap: Gap, wish: Wish | None, *, is_stopped: bool) -> None:
    """Keep a wish of whose dispatch nothing is left; once an operator stopped it, park its gap."""
    ledger, now = world.ledger, world.clock.now()
    reopening = wish.reopening if wish is not None else None
    if is_stopped:
        reason = STOPPED_BY_OPERATOR
        if reopening is not None:
            reason += f"; {offer(gap.id, Outcome(OutcomeKind.CANCELLED))}"
            await ledger.request_done(gap.id)
        await ledger.park(Parked(gap.id, reason, fingerprint(gap), now))
    elif wish is not None:
        await ledger.request_dispatch(gap.id, resume=reopening.times if reopening else None)


async def _drop(world: World, gap_id: str, why: str) -> None:
    await world.ledger.request_done(gap_id)
    log.warning("request.dropped", gap=gap_id, why=why)
    world.tell("request.dropped", gap=gap_id, why=why)
