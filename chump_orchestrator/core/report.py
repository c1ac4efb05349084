"""What a stretch of time came to: shipped, failed, still under way, and spent (behaviour C10)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import field
from datetime import datetime, timedelta

from chump_orchestrator.core.deferred import dataclass
from chump_orchestrator.core.outcome import OutcomeKind, PullState
from chump_orchestrator.core.records import Record


@dataclass(frozen=True, slots=True)
class Spent:
    """What dispatches took: of the time, agents' work within it; costs as agents reported them.

    `cost_usd` and `tokens` of `None` are not known of any of them. `shipped` and `failed` count
    dispatches that ended in the time, `dispatches` all that were at work in it.
    """

    dispatches: int = 0
    shipped: int = 0
    failed: int = 0
    work: timedelta = timedelta(0)
    cost_usd: float | None = None
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What came of the dispatches between `since` and `until`, each gap once.

    A dispatch whose outcome was corrected by a later merge counts as shipped in the time in which
    that was heard of, and with its costs in the time in which it ended. What has ended stands
    latest first, what has not oldest first. `failed` are last attempts that failed, of gaps that
    have not shipped and are not under way again; `other` those that ended as neither. `running`
    are under way and have an agent, or are about to; `ended_unseen` are those whose agents ended
    without anybody to write it down. `open_pulls` have a request that waits to be merged, also
    where their dispatch no longer waits for it. `attempts` counts those of each gap that ended in
    the time.
    """

    since: datetime
    until: datetime
    shipped: tuple[Record, ...] = ()
    failed: tuple[Record, ...] = ()
    other: tuple[Record, ...] = ()
    running: tuple[Record, ...] = ()
    ended_unseen: tuple[Record, ...] = ()
    open_pulls: tuple[Record, ...] = ()
    attempts: Mapping[str, int] = field(default_factory=dict)
    spent: Spent = field(default_factory=Spent)
    backends: Mapping[str, Spent] = field(default_factory=dict)


def report(records: Iterable[Record], since: datetime, until: datetime) -> Report:
    """Return what `records`, in the order in which they were begun, came to in a stretch of time.

    Instants are aware. A dispatch belongs to the time in which it ended.
    """
    known = tuple(records)
    active = [one for one in known if one.state.is_active]
    ended = [one for one in known if _counts_in(one, since, until)]
    ended.sort(key=lambda one: one.corrected_at or one.ended_at or since)
    last = {one.dispatch.gap.id: one for one in ended}
    shipped = {one.dispatch.gap.id: one for one in ended if _is(one, OutcomeKind.SHIPPED)}
    again = {one.dispatch.gap.id for one in active}
    rest = _latest_first(r for gap, r in last.items() if gap not in shipped and gap not in again)
    attempts: dict[str, int] = {}
    for one in ended:
        attempts[one.dispatch.gap.id] = attempts.get(one.dispatch.gap.id, 0) + 1
    of_the_time = {one.dispatch.id for one in ended}
    at_work = [r for r in known if r.dispatch.id in of_the_time or _work(r, since, until)]
    names = sorted({one.dispatch.route.backend for one in at_work})
    return Report(
        since,
        until,
        shipped=tuple(_latest_first(shipped.values())),
        failed=tuple(one for one in rest if one.outcome and one.outcome.is_failure),
        other=tuple(one for one in rest if one.outcome and not one.outcome.is_failure),
        running=tuple(one for one in active if one.holds_slot),
        ended_unseen=tuple(r for r in active if not r.holds_slot and r.exited_at is None),
        open_pulls=tuple(
            one for one in (*active, *rest) if one.pull and one.pull.state is PullState.OPEN
        ),
        attempts=attempts,
        spent=_spent(at_work, since, until),
        backends={
            name: _spent((r for r in at_work if r.dispatch.route.backend == name), since, until)
            for name in names
        },
    )


def _latest_first(records: Iterable[Record]) -> list[Record]:
    def at(one: Record) -> datetime:
        return one.corrected_at or one.ended_at or one.dispatch.created_at

    return sorted(records, key=at, reverse=True)


def _ended_in(record: Record, since: datetime, until: datetime) -> bool:
    """Say whether a dispatch has an outcome from that time; one never begun has none."""
    at = record.ended_at
    return record.outcome is not None and at is not None and since <= at <= until


def _was_there(record: Record, since: datetime, until: datetime) -> bool:
    """Say whether a dispatch was at work in that time, or ended in it."""
    return _ended_in(record, since, until) or _work(record, since, until) > timedelta(0)


def _counts_in(record: Record, since: datetime, until: datetime) -> bool:
    """Say whether the outcome that a dispatch has by now is from that time."""
    at = record.corrected_at or record.ended_at
    return record.outcome is not None and at is not None and since <= at <= until


def _is(record: Record, kind: OutcomeKind) -> bool:
    return record.outcome is not None and record.outcome.kind is kind


def _work(record: Record, since: datetime, until: datetime) -> timedelta:
    """Return how much of the time the agent of a dispatch worked, sleep of the machine left out.

    An agent of which nobody knows when it ended is one that never did, or died with the machine.
    """
    if record.launched_at is None:
        return timedelta(0)
    end = record.exited_at or (until if record.state.is_active else record.ended_at)
    within = min(end or since, until) - max(record.launched_at, since)
    if record.exit is not None:
        within = min(within, record.exit.active)
    return max(within, timedelta(0))


def _spent(records: Iterable[Record], since: datetime, until: datetime) -> Spent:
    known = tuple(records)
    ended = [one for one in known if _ended_in(one, since, until)]
    costs = [one.cost_usd for one in ended if one.cost_usd is not None]
    tokens = [one.tokens for one in ended if one.tokens is not None]
    return Spent(
        dispatches=sum(1 for one in known if _was_there(one, since, until)),
        shipped=sum(
            1 for one in known if _is(one, OutcomeKind.SHIPPED) and _counts_in(one, since, until)
        ),
        failed=sum(1 for one in ended if one.outcome is not None and one.outcome.is_failure),
        work=sum((_work(one, since, until) for one in known), timedelta(0)),
        cost_usd=sum(costs) if costs else None,
        tokens=sum(tokens) if tokens else None,
    )
