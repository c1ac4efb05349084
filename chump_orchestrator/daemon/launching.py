"""From a picked gap to a running agent: worktree, lease, agent, each undone if the next fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING

import anyio
import structlog

from chump_orchestrator.core.causes import Cause
from chump_orchestrator.core.dispatch import Dispatch, Workspace, dispatch_id
from chump_orchestrator.core.errors import ConfigError, Refused, Unavailable
from chump_orchestrator.core.outcome import Outcome, OutcomeKind
from chump_orchestrator.core.records import DispatchState, Record

if TYPE_CHECKING:
    from chump_orchestrator.core.gap import Gap
    from chump_orchestrator.core.ports import Agent
    from chump_orchestrator.core.routing import Route
    from chump_orchestrator.daemon.world import World

log = structlog.get_logger()

SUFFIX = "abcdefghijklmnopqrstuvwxyz234567"
"""Letters of the random end of a dispatch id."""


@dataclass(frozen=True, slots=True)
class Launched:
    """The agent is running and on record."""

    record: Record
    agent: Agent


@dataclass(frozen=True, slots=True)
class Failed:
    """The dispatch is on record and has its outcome; what was made for it is undone.

    `lease_ends_at` is when the lease that was in the way ends, if known; `backend_at_fault`
    says that the program could not be executed at all.
    """

    record: Record
    outcome: Outcome
    lease_ends_at: datetime | None = None
    backend_at_fault: bool = False


@dataclass(frozen=True, slots=True)
class Postponed:
    """Nothing was done and nothing recorded; the world is not ready for any dispatch."""

    reason: str


async def launch(
    world: World,
    gap: Gap,
    route: Route,
    *,
    fresh_base: datetime | None,
    on_id: Callable[[str], None],
) -> Launched | Failed | Postponed:
    """Dispatch `gap`: plan, worktree, lease, agent, in this order (behaviour D2).

    With `fresh_base`, a base fetched before that instant is fetched again. `on_id` is told the
    dispatch's id as soon as there is one. Cancelled on the way, it leaves a record from which
    recovery knows what to undo.
    """
    try:
        base = await world.worktrees.refresh(at_least=fresh_base)
        names = await world.worktrees.propose(gap)
        attempt = await world.ledger.attempts(gap.id) + 1
    except (Unavailable, Refused) as error:
        return Postponed(str(error))
    now = world.clock.now()
    suffix = "".join(world.chance.choices(SUFFIX, k=6))
    dispatch = Dispatch(
        id=dispatch_id(gap, now, suffix),
        gap=gap,
        attempt=attempt,
        route=route,
        deadlines=world.policies.deadlines.of(gap),
        names=names,
        created_at=now,
    )
    on_id(dispatch.id)
    structlog.contextvars.bind_contextvars(
        gap=gap.id, dispatch=dispatch.id, backend=route.backend, attempt=attempt
    )
    try:
        await world.ledger.add(dispatch)
    except (Unavailable, Refused) as error:
        return Postponed(str(error))
    record = Record(dispatch, DispatchState.PLANNED)
    try:
        workspace = await world.worktrees.add(names, base, dispatch.id)
    except (Unavailable, Refused) as error:
        return Failed(record, _spawn_failed(f"no worktree: {error}"))
    try:
        return await _in_workspace(world, replace(record, workspace=workspace), workspace)
    except (Unavailable, Refused, ConfigError) as error:
        await undo(world, dispatch.id, workspace)
        return Failed(replace(record, workspace=workspace), _spawn_failed(str(error)))


async def _in_workspace(world: World, record: Record, workspace: Workspace) -> Launched | Failed:
    dispatch = record.dispatch
    gap = dispatch.gap
    await world.ledger.update(dispatch.id, record)
    try:
        denied = await world.leases.claim(gap, dispatch.id, workspace)
    except Refused as error:
        raise Unavailable(str(error)) from error
    if denied is not None:
        await undo(world, dispatch.id, workspace)
        outcome = Outcome(OutcomeKind.RACE_ABANDONED, denied.reason)
        return Failed(record, outcome, lease_ends_at=denied.until)
    lessons = await world.lessons(gap) if world.policies.lessons and world.lessons else ()
    prompt = await world.prompts.prompt(gap, workspace, lessons)
    command = world.backend(dispatch.route.backend).command(gap, dispatch.route, prompt)
    record = replace(record, state=DispatchState.LAUNCHING)
    await world.ledger.update(dispatch.id, record)
    try:
        agent = await world.executor.launch(dispatch, workspace, command, prompt)
    except Refused as error:
        await undo(world, dispatch.id, workspace)
        return Failed(record, _spawn_failed(str(error)), backend_at_fault=True)
    record = replace(
        record, state=DispatchState.RUNNING, pid=agent.pid, launched_at=world.clock.now()
    )
    await world.ledger.update(dispatch.id, record)
    why = dispatch.route.why or "default"
    log.info("dispatch.launched", branch=workspace.branch, pid=agent.pid, why=why)
    world.tell(
        "dispatch.launched",
        gap=gap.id,
        dispatch=dispatch.id,
        pid=agent.pid,
        branch=workspace.branch,
        worktree=workspace.path,
    )
    return Launched(record, agent)


async def undo(world: World, dispatch_id: str, workspace: Workspace) -> None:
    """Give back lease and worktree of a dispatch whose agent never ran; failures are logged."""
    with anyio.CancelScope(shield=True):
        for step in (
            lambda: world.leases.release(dispatch_id),
            lambda: world.worktrees.remove(workspace, dispatch_id),
        ):
            try:
                await step()
            except (Unavailable, Refused) as error:
                log.warning("launch.left_behind", error=str(error))


def _spawn_failed(reason: str) -> Outcome:
    return Outcome(OutcomeKind.SPAWN_FAILED, reason, Cause.SPAWN)
