"""Rows made anew of dispatches that the ledger has lost, from what was written beside it.

A ledger that was moved aside leaves the folders of dispatches and the journal. What has a
reflection ended as that tells, and is delivered already; of the rest, each gap's newest dispatch,
or the one that lives, goes on, and all others have ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import structlog

from chump_orchestrator.core.errors import Refused, Unavailable
from chump_orchestrator.core.outcome import (
    Observation,
    Outcome,
    OutcomeKind,
    PullRequest,
    PullState,
    Settle,
    judge,
)
from chump_orchestrator.core.records import DispatchState, Record, Remembered
from chump_orchestrator.core.shipping import Shipment
from chump_orchestrator.daemon.hearing import hear_out
from chump_orchestrator.daemon.launching import undo
from chump_orchestrator.daemon.settling import settle

if TYPE_CHECKING:
    from chump_orchestrator.core.agent import Agent
    from chump_orchestrator.daemon.world import World

log = structlog.get_logger()

LONG_AGO = timedelta(days=1)
"""Looks that cannot be made any more are taken to have lain so far apart, and found nothing."""


@dataclass(frozen=True, slots=True)
class _Found:
    """One dispatch of a gap that has some without rows.

    `agent` of `None` was never started, unless it is not `is_reachable` and so may live.
    """

    record: Record
    has_row: bool
    agent: Agent | None
    is_reachable: bool
    remembered: Remembered | None

    @property
    def lives(self) -> bool:
        return not self.is_reachable or (self.agent is not None and self.agent.exit is None)

    @property
    def is_over(self) -> bool:
        """Whether it is known that nothing is to come of it any more."""
        return not self.lives and (self.remembered is not None or self.agent is None)


async def rebuild(world: World) -> None:
    """Give each dispatch that has left something on disk a row, if it has none.

    To be called before anything is taken up. A folder that tells nothing is left alone.
    """
    try:
        there = await world.executor.known()
        known = await world.ledger.ends(there)
        strangers = [one for one in there if one not in known]
        active = await world.ledger.records(active=True) if strangers else ()
    except (Unavailable, Refused) as error:
        log.warning("dispatch.unlisted", error=str(error))
        return
    recalled = await _recalled(world, strangers)
    gaps = {record.dispatch.gap.id for record in recalled}
    rows = [record for record in active if record.dispatch.gap.id in gaps]
    remembered = await _remembered(world, [one.dispatch.id for one in (*recalled, *rows)])
    with_rows = {one.dispatch.id for one in rows}
    by_gap: dict[str, list[_Found]] = {}
    for record in sorted((*recalled, *rows), key=lambda one: one.dispatch.created_at):
        found = await _look(world, record, with_rows, remembered)
        by_gap.setdefault(record.dispatch.gap.id, []).append(found)
    for all_of_it in by_gap.values():
        await _sort_out(world, all_of_it)
    if recalled:
        log.warning("ledger.rebuilt", dispatches=len(recalled))


async def _recalled(world: World, dispatch_ids: Sequence[str]) -> list[Record]:
    records = []
    for dispatch_id in dispatch_ids:
        try:
            told = await world.executor.recall(dispatch_id)
        except (Unavailable, Refused) as error:
            log.warning("dispatch.unknown", dispatch=dispatch_id, why=str(error))
            continue
        if told is None:
            log.warning("dispatch.unknown", dispatch=dispatch_id, why="its order cannot be read")
            continue
        # Who was to ship it went with its row; what is set now is the best that is known.
        record = Record(
            told.dispatch,
            DispatchState.RUNNING,
            told.workspace,
            launched_at=told.launched_at,
            shipment=Shipment() if world.ships else None,
        )
        records.append(record)
    return records


async def _remembered(world: World, dispatch_ids: Sequence[str]) -> Mapping[str, Remembered]:
    if world.journal is None or not dispatch_ids:
        return {}
    try:
        return await world.journal.remembered(dispatch_ids)
    except (Unavailable, Refused) as error:
        # Then the forge is asked again. What was delivered is not delivered twice in any case.
        log.warning("journal.unavailable", error=str(error))
        return {}


async def _look(
    world: World, record: Record, known: set[str], remembered: Mapping[str, Remembered]
) -> _Found:
    dispatch_id = record.dispatch.id
    agent, is_reachable = None, True
    try:
        agent = await world.executor.attach(dispatch_id)
    except (Unavailable, Refused) as error:
        is_reachable = False
        log.warning("dispatch.unreachable", dispatch=dispatch_id, error=str(error))
    if agent is not None:
        record = replace(record, pid=agent.pid)
    has_row, told = dispatch_id in known, remembered.get(dispatch_id)
    return _Found(record, has_row, agent, is_reachable, told)


async def _sort_out(world: World, all_of_it: Sequence[_Found]) -> None:
    """Bring all dispatches of one gap on record, oldest first, the one that goes on last."""
    going = [found for found in all_of_it if not found.is_over]
    living = [found for found in going if found.lives]
    goes_on = (living or going)[-1:]
    for found in (*(each for each in all_of_it if each not in goes_on), *goes_on):
        dispatch = found.record.dispatch
        try:
            if not found.has_row:
                await world.ledger.add(dispatch)
            if found not in goes_on:
                await _end(world, found)
            elif not found.has_row:
                await world.ledger.update(dispatch.id, found.record)
        except Refused as error:
            # Another one of this gap is under way on record; the next start tries again.
            log.warning("dispatch.unknown", dispatch=dispatch.id, why=str(error))
        else:
            log.info(
                "dispatch.recalled",
                dispatch=dispatch.id,
                gap=dispatch.gap.id,
                goes_on=found in goes_on,
            )


async def _end(world: World, found: _Found) -> None:
    """End a dispatch whose row is there by now."""
    record, agent, dispatch = found.record, found.agent, found.record.dispatch
    if agent is not None and agent.exit is not None:
        at = agent.ended_at or world.clock.now()
        report = await hear_out(world, dispatch.route.backend, record.report, agent)
        record = replace(record, exit=agent.exit, exited_at=at, report=report)
    elif found.remembered is None:
        if record.workspace is not None:
            await undo(world, dispatch, record.workspace)
        await world.ledger.abort(dispatch.id, "no agent was ever started", world.clock.now())
        return
    if found.remembered is None:
        outcome, ended_at = _judged(record), record.exited_at
    else:
        outcome, began = found.remembered.outcome, record.launched_at or dispatch.created_at
        ended_at = min(began + found.remembered.duration, world.clock.now())
        record = _with_pull(record, found.remembered, ended_at)
    record = replace(record, state=DispatchState.EXITED)
    await world.ledger.update(dispatch.id, record)
    told = record.report
    await settle(world, record, outcome, agent=agent, siblings=0, report=told, ended_at=ended_at)


def _judged(record: Record) -> Outcome:
    """Return how a dispatch ended after which its gap was dispatched again, by its exit alone."""
    ended = record.exit
    if ended is None:
        return Outcome(OutcomeKind.LOST, "nothing is known of its agent")
    seen = Observation(
        active=ended.active,
        exit=ended,
        since_exit=2 * LONG_AGO,
        looked=timedelta(0),
        quiet_looks=2,
        quiet_span=LONG_AGO,
    )
    verdict = judge(seen, record.dispatch.deadlines)
    if isinstance(verdict, Settle):
        return verdict.outcome
    return Outcome(OutcomeKind.STALLED, ended.in_words)


def _with_pull(record: Record, told: Remembered, at: datetime) -> Record:
    is_shipped = told.outcome.kind is OutcomeKind.SHIPPED
    if not is_shipped and told.pull_number is None:
        return record
    state = PullState.MERGED if is_shipped else PullState.OPEN
    branch = record.dispatch.names.branch
    return replace(record, pull=PullRequest(branch, state, at, told.pull_number))
