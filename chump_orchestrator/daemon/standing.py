"""The backlog as leases, brakes and our own work leave it: who holds which gap, and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Protocol

from chump_orchestrator.core.backlog import Backlog, Hold, HoldKind
from chump_orchestrator.core.brakes import fingerprint
from chump_orchestrator.core.gap import PERPETUAL
from chump_orchestrator.core.outcome import OutcomeKind
from chump_orchestrator.telling import Logger

if TYPE_CHECKING:
    from chump_orchestrator.core.ports import Ledger
    from chump_orchestrator.core.records import Lease

log = Logger()


class LiveLeases(Protocol):
    """Who has claimed which gap, which is all that is asked of the leases here."""

    async def live(self) -> tuple[Lease, ...]:
        """Return the leases that count now, as `core.ports.Leases` does."""
        ...


async def standing(
    backlog: Backlog,
    ledger: Ledger,
    leases: LiveLeases,
    now: datetime,
    *,
    active: Mapping[str, str],
    repeat: timedelta,
) -> Backlog:
    """Return `backlog` with its holds and what was shipped; changes nothing.

    `active` maps the gaps under way to their dispatches; `repeat` is how long a perpetual gap
    rests between two runs. Where several things hold a gap, the weightiest counts: being active,
    then brakes, then others' leases.
    """
    holds: dict[str, Hold] = {}
    ours = set(active.values())
    for lease in await leases.live():
        if lease.holder not in ours:
            holds[lease.gap] = Hold(HoldKind.LEASED, f"leased by {lease.holder}", lease.expires_at)
    for gap in backlog.gaps:
        if gap.status == PERPETUAL:
            latest = await ledger.latest(1, gap.id)
            ended_at = latest[0].ended_at if latest and latest[0].outcome else None
            if ended_at is not None and ended_at <= now < ended_at + repeat:
                again = ended_at + repeat
                holds[gap.id] = Hold(HoldKind.RESTING, "it has had its run (pick.repeat)", again)
    for parked in await ledger.parked():
        known = backlog.index.gaps.get(parked.gap)
        if known is not None and parked.fingerprint != fingerprint(known):
            continue
        if parked.until is None:
            holds[parked.gap] = Hold(HoldKind.PARKED, parked.reason)
        elif parked.since <= now < parked.until:
            # What began in the future was written before the clock was put back, and is over.
            kind = HoldKind.LEASED if await _was_refused(ledger, parked.gap) else HoldKind.BACKOFF
            holds[parked.gap] = Hold(kind, parked.reason, parked.until)
    for gap_id, dispatch in active.items():
        holds[gap_id] = Hold(HoldKind.ACTIVE, dispatch or "being dispatched")
    return backlog.with_holds(holds, await ledger.shipped())


async def _was_refused(ledger: Ledger, gap_id: str) -> bool:
    """Say whether a gap rests as somebody else's lease was in its way the last time."""
    latest = await ledger.latest(1, gap_id)
    outcome = latest[0].outcome if latest else None
    return outcome is not None and outcome.kind is OutcomeKind.RACE_ABANDONED


async def free_what_changed(
    backlog: Backlog, ledger: Ledger, now: datetime, tell: Callable[..., None]
) -> None:
    """Free parked gaps whose text has changed, and shipped ones whose entries were opened anew.

    Behaviour X2 and B6. A shipped gap counts as opened anew once the backlog has said done.
    `tell` is told of each.
    """
    for parked in await ledger.parked():
        gap = backlog.index.gaps.get(parked.gap)
        if gap is not None and parked.fingerprint != fingerprint(gap):
            await ledger.free(parked.gap, now)
            log.info("gap.freed", gap=parked.gap, why="its text has changed")
            tell("gap.freed", gap=parked.gap, why="its text has changed")
    shipped = await ledger.shipped()
    if not shipped:
        return
    confirmed = await ledger.confirmed()
    gaps = backlog.index.gaps
    unconfirmed = (gaps.get(gap_id) for gap_id in shipped if gap_id not in confirmed)
    if fresh := [gap.id for gap in unconfirmed if gap is not None and gap.is_done]:
        await ledger.confirm_shipped(fresh)
    for gap_id in confirmed:
        gap = gaps.get(gap_id)
        if gap is not None and gap.is_open:
            await ledger.free(gap_id, now)
            log.info("gap.freed", gap=gap_id, why="its entry was opened anew")
            tell("gap.freed", gap=gap_id, why="its entry was opened anew")
