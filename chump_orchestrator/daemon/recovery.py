"""What an earlier daemon left: living agents taken up, ended ones settled, the rest undone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

import anyio
import structlog

from chump_orchestrator.core.dispatch import Workspace
from chump_orchestrator.core.errors import Refused, Unavailable
from chump_orchestrator.core.outcome import Exit
from chump_orchestrator.core.records import DispatchState, Record
from chump_orchestrator.daemon.launching import undo
from chump_orchestrator.daemon.rebuilding import rebuild
from chump_orchestrator.daemon.settling import tidy

if TYPE_CHECKING:
    from chump_orchestrator.core.agent import Agent
    from chump_orchestrator.daemon.world import World

log = structlog.get_logger()

FIRST_WAIT = timedelta(seconds=2)
LONGEST_WAIT = timedelta(minutes=1)
"""Between two attempts to reach a shim; doubles."""

NEVER_STARTED = (DispatchState.PLANNED, DispatchState.LAUNCHING)


@dataclass(frozen=True, slots=True)
class TakenUp:
    """A dispatch that goes on; `agent` of `None` is one that ended and of which no file is left.

    With `is_reachable` false it is not known how its agent fares: `regain` finds out.
    """

    record: Record
    agent: Agent | None
    is_reachable: bool = True


async def recover(world: World) -> tuple[TakenUp, ...]:
    """Bring every dispatch on record into a state that the daemon can go on from.

    To be called once, before anything is dispatched. What never started is aborted and its
    worktree and lease given back; what was settled but not tidied is tidied now. What the ledger
    has no row of, as it was made anew, gets one first.
    """
    for told in await world.worktrees.heal():
        log.warning("worktree.healed", what=told)
    await rebuild(world)
    found: list[TakenUp] = []
    for record in await world.ledger.records(active=True):
        taken = await _take_up(world, record)
        if taken is not None:
            found.append(taken)
    for record in await world.ledger.records(untidy=True):
        await tidy(world, record)
    active = {taken.record.dispatch.id for taken in found}
    for dispatch_id in await world.leases.held_by_us():
        if dispatch_id not in active:
            await world.leases.release(dispatch_id)
            log.info("lease.released", dispatch=dispatch_id, why="its dispatch has ended")
    fuse = await world.ledger.fuse()
    if fuse.trial and fuse.trial not in active:
        await world.ledger.set_fuse(fuse.forgotten(fuse.trial))
    return tuple(found)


async def _take_up(world: World, record: Record) -> TakenUp | None:
    """Take up one dispatch; whatever goes wrong with it, the others are taken up all the same."""
    dispatch = record.dispatch
    try:
        agent = await world.executor.attach(dispatch.id)
        return await _taken_up(world, record, agent)
    except (Unavailable, Refused) as error:
        log.warning("dispatch.unreachable", dispatch=dispatch.id, error=str(error))
    except Exception:
        log.exception("dispatch.unreadable", dispatch=dispatch.id)
    return TakenUp(record, None, is_reachable=False)


async def _taken_up(world: World, record: Record, agent: Agent | None) -> TakenUp | None:
    dispatch = record.dispatch
    if agent is None and record.state in NEVER_STARTED:
        workspace = record.workspace
        if workspace is None:
            path = await world.worktrees.path_of(dispatch.names)
            workspace = Workspace(path, dispatch.names.branch, "")
        await undo(world, dispatch, workspace)
        await world.ledger.abort(dispatch.id, "no agent was ever started", world.clock.now())
        log.info("dispatch.aborted", dispatch=dispatch.id, gap=dispatch.gap.id)
        world.tell("dispatch.aborted", dispatch=dispatch.id, gap=dispatch.gap.id)
        return None
    if agent is None and record.exit is None:
        now = world.clock.now()
        lost = Exit(lost="the files of its agent are gone", clean=False)
        record = replace(record, state=DispatchState.EXITED, exit=lost, exited_at=now)
        await world.ledger.update(dispatch.id, record)
    elif agent is not None and record.state in NEVER_STARTED:
        record = replace(
            record,
            state=DispatchState.RUNNING,
            pid=agent.pid,
            launched_at=record.launched_at or dispatch.created_at,
        )
        await world.ledger.update(dispatch.id, record)
    if record.workspace is None and agent is not None:
        # Its row was being made anew when an earlier daemon died.
        recalled = await world.executor.recall(dispatch.id)
        if recalled is not None:
            record = replace(record, workspace=recalled.workspace)
    log.info(
        "dispatch.taken_up",
        dispatch=dispatch.id,
        gap=dispatch.gap.id,
        pid=record.pid,
        ended=agent is None or agent.exit is not None,
    )
    world.tell("dispatch.taken_up", dispatch=dispatch.id, gap=dispatch.gap.id, pid=record.pid)
    return TakenUp(record, agent)


async def regain(world: World, record: Record) -> TakenUp:
    """Take up a dispatch that could not be reached, as soon as it can; cancelling gives it up."""
    wait = FIRST_WAIT
    while True:
        await anyio.sleep(wait.total_seconds())
        wait = min(wait * 2, LONGEST_WAIT)
        taken = await _take_up(world, record)
        if taken is None:
            lost = Exit(lost="no agent was ever started", clean=True)
            now = world.clock.now()
            ended = replace(record, state=DispatchState.EXITED, exit=lost, exited_at=now)
            return TakenUp(ended, None)
        if taken.is_reachable:
            return taken
