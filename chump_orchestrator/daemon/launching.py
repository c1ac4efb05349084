"""From a picked gap to a running agent: worktree, lease, agent, each undone if the next fails."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

import anyio
import structlog

from chump_orchestrator.core.causes import Cause
from chump_orchestrator.core.dispatch import Dispatch, Names, Resumed, Workspace, dispatch_id
from chump_orchestrator.core.errors import ConfigError, Refused, Unavailable
from chump_orchestrator.core.outcome import Outcome, OutcomeKind
from chump_orchestrator.core.records import DispatchState, Record
from chump_orchestrator.core.shipping import Shipment
from chump_orchestrator.core.testimony import Report

if TYPE_CHECKING:
    from chump_orchestrator.core.agent import Agent
    from chump_orchestrator.core.gap import Gap
    from chump_orchestrator.core.routing import Route
    from chump_orchestrator.daemon.reopening import Reopening
    from chump_orchestrator.daemon.world import World

log = structlog.get_logger()

SUFFIX = "abcdefghijklmnopqrstuvwxyz234567"
"""Letters of the random end of a dispatch id."""


@dataclass(frozen=True, slots=True)
class Begun:
    """What is known of a dispatch from its first moment: its id, and when that was."""

    id: str
    at: datetime


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
    """Nothing is left of it; the world is not ready for any dispatch.

    `is_lasting` says that waiting alone does not help.
    """

    reason: str
    is_lasting: bool = False


@dataclass(frozen=True, slots=True)
class Unwanted:
    """Nobody wanted it any more before its agent was started; nothing is left of it."""


async def launch(
    world: World,
    gap: Gap,
    route: Route,
    *,
    fresh_base: datetime | None,
    on_id: Callable[[str], None],
    is_wanted: Callable[[], bool],
    making: anyio.CancelScope,
    reopening: Reopening | None = None,
) -> Launched | Failed | Postponed | Unwanted:
    """Dispatch `gap`: plan, worktree, lease, agent, in this order (behaviour D2).

    With `reopening` its worktree is that of an earlier dispatch, whose session is gone on with.
    With `fresh_base`, a base fetched before that instant is fetched again. `on_id` is told the
    dispatch's id just before it goes on record. `is_wanted` is asked again before each step, the
    last time just before the agent is started. Cancelling `making` gives up the steps that git may
    hang in, all up to the worktree. Cancelled otherwise, it leaves a record from which recovery
    knows what to undo.
    """
    now = world.clock.now()
    begun = Begun(dispatch_id(gap, now, "".join(world.chance.choices(SUFFIX, k=6))), now)
    # Its shim starts while git makes the worktree; there is nothing for it to do before.
    async with world.executor.expecting(begun.id):
        made: Record | Failed | Postponed | Unwanted = Unwanted()
        with making:
            if reopening is None:
                made = await _make(world, gap, route, begun, fresh_base, on_id, is_wanted, making)
            else:
                made = await reopening.make(world, gap, route, begun, on_id, is_wanted, making)
        if not isinstance(made, Record) or made.workspace is None:
            return Unwanted() if isinstance(made, Record) else made
        dispatch, workspace = made.dispatch, made.workspace
        result: Launched | Failed | Unwanted
        try:
            result = await _in_workspace(world, made, workspace, is_wanted, reopening)
        except (Unavailable, Refused, ConfigError) as error:
            result = Failed(made, spawn_failed(str(error)))
        is_undone = not isinstance(result, Launched) and await undo(world, dispatch, workspace)
        if isinstance(result, Failed) and is_undone:
            return replace(result, record=replace(result.record, workspace=None))
        if isinstance(result, Unwanted):
            await abort(world, dispatch)
        return result


async def _make(
    world: World,
    gap: Gap,
    route: Route,
    begun: Begun,
    fresh_base: datetime | None,
    on_id: Callable[[str], None],
    is_wanted: Callable[[], bool],
    making: anyio.CancelScope,
) -> Record | Failed | Postponed | Unwanted:
    """Plan a dispatch and make its worktree; a record has one."""
    try:
        base = await world.worktrees.refresh(at_least=fresh_base)
        names = await world.worktrees.propose(gap)
        attempt = await world.ledger.attempts(gap.id) + 1
    except Unavailable as error:
        return Postponed(str(error))
    except (Refused, ConfigError) as error:
        return Postponed(str(error), is_lasting=True)
    if not is_wanted():
        return Unwanted()
    dispatch = planned(world, gap, route, begun, attempt, names)
    on_id(dispatch.id)
    record = Record(dispatch, DispatchState.PLANNED)
    try:
        try:
            await world.ledger.add(dispatch)
        except (Unavailable, Refused) as error:
            return Postponed(str(error))
        try:
            workspace = await world.worktrees.add(names, base, dispatch.id)
        except (Unavailable, Refused) as error:
            return Failed(record, spawn_failed(f"no worktree: {error}"))
    except anyio.get_cancelled_exc_class():
        if making.cancel_called:
            with anyio.CancelScope(shield=True):
                await abort(world, dispatch)
        raise
    return replace(record, workspace=workspace)


def planned(
    world: World,
    gap: Gap,
    route: Route,
    begun: Begun,
    attempt: int,
    names: Names,
    resumed: Resumed | None = None,
) -> Dispatch:
    """Return a new dispatch, nothing of it done yet; what is logged from now on is about it."""
    dispatch = Dispatch(
        id=begun.id,
        gap=gap,
        attempt=attempt,
        route=route,
        deadlines=world.policies.deadlines.of(gap),
        names=names,
        created_at=begun.at,
        resumed=resumed,
    )
    structlog.contextvars.bind_contextvars(
        gap=gap.id, dispatch=dispatch.id, backend=route.backend, attempt=attempt
    )
    return dispatch


async def abort(world: World, dispatch: Dispatch) -> None:
    """Store that nobody wanted a dispatch any more before its agent was started."""
    try:
        await world.ledger.abort(dispatch.id, "nobody wanted it any more", world.clock.now())
    except (Unavailable, Refused) as error:
        # The next start finds that it never had an agent.
        log.warning("ledger.unavailable", error=str(error))


async def _in_workspace(
    world: World,
    record: Record,
    workspace: Workspace,
    is_wanted: Callable[[], bool],
    reopening: Reopening | None,
) -> Launched | Failed | Unwanted:
    """Claim, brief and start; whatever comes of it but `Launched` is to be undone."""
    dispatch = record.dispatch
    gap = dispatch.gap
    await world.ledger.update(dispatch.id, record)
    denied = await world.leases.claim(gap, dispatch.id, workspace)
    if denied is not None:
        outcome = Outcome(OutcomeKind.RACE_ABANDONED, denied.reason)
        return Failed(record, outcome, lease_ends_at=denied.until)
    lessons: tuple[str, ...] = ()
    if reopening is None:
        lessons = await _lessons(world, gap)
        prompt = await world.prompts.prompt(gap, workspace, lessons)
        command = world.backend(dispatch.route.backend).command(gap, dispatch.route, prompt)
    else:
        prompt, command = await reopening.order(world, dispatch, workspace)
    has_session = command.names_session or dispatch.resumed is not None
    told = Report(session=dispatch.session) if has_session else record.report
    # On record from here on: who ships is what the agent is told, whatever is set later.
    shipment = Shipment() if world.ships else None
    record = replace(
        record, state=DispatchState.LAUNCHING, lessons=lessons, report=told, shipment=shipment
    )
    await world.ledger.update(dispatch.id, record)
    if not is_wanted():
        return Unwanted()
    try:
        agent = await world.executor.launch(dispatch, workspace, command, prompt)
    except Refused as error:
        return Failed(record, spawn_failed(str(error)), backend_at_fault=True)
    return await _running(world, record, workspace, agent)


async def _running(world: World, record: Record, workspace: Workspace, agent: Agent) -> Launched:
    """Write down that the agent runs, and tell. From here on nothing may be undone."""
    dispatch = record.dispatch
    record = replace(
        record, state=DispatchState.RUNNING, pid=agent.pid, launched_at=world.clock.now()
    )
    try:
        await world.ledger.update(dispatch.id, record)
    except Unavailable as error:
        # Recovery tells from its shim that it runs; whoever watches it writes the rest down.
        log.warning("ledger.unavailable", error=str(error))
    why = dispatch.route.why or "default"
    log.info("dispatch.launched", branch=workspace.branch, pid=agent.pid, why=why)
    world.tell(
        "dispatch.launched",
        gap=dispatch.gap.id,
        dispatch=dispatch.id,
        backend=dispatch.route.backend,
        pid=agent.pid,
        branch=workspace.branch,
        worktree=workspace.path,
    )
    return Launched(record, agent)


async def _lessons(world: World, gap: Gap) -> tuple[str, ...]:
    """Return what the journal has to teach; a brief goes out without it if need be."""
    if world.lessons is None or not world.policies.lessons:
        return ()
    try:
        return await world.lessons(gap)
    except (Unavailable, Refused) as error:
        log.warning("lessons.unavailable", error=str(error))
        return ()


async def undo(world: World, dispatch: Dispatch, workspace: Workspace) -> bool:
    """Give back lease and worktree of a dispatch whose agent never ran; say whether all is gone.

    A worktree that it did not make goes back to the dispatch whose session it was to go on with,
    and nothing in it is touched. Failures are logged, and left for the tidying.
    """
    is_gone = True
    with anyio.CancelScope(shield=True):
        steps: tuple[Callable[[], Awaitable[None]], ...] = (
            partial(world.leases.release, dispatch.id),
            partial(give_back, world, dispatch, workspace),
        )
        for step in steps:
            try:
                await step()
            except (Unavailable, Refused) as error:
                is_gone = False
                log.warning("launch.left_behind", error=str(error))
    return is_gone


async def give_back(world: World, dispatch: Dispatch, workspace: Workspace) -> None:
    """Remove the worktree of a dispatch that had no agent, or return it to whose it was."""
    if dispatch.resumed is None:
        await world.worktrees.remove(workspace, dispatch.id)
    else:
        await world.worktrees.hand_over(workspace, dispatch.id, dispatch.resumed.dispatch)


def spawn_failed(reason: str) -> Outcome:
    """Return the outcome of a dispatch whose agent was never started."""
    return Outcome(OutcomeKind.SPAWN_FAILED, reason, Cause.SPAWN)
