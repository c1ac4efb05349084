"""Going on with a session: whose it may be, its worktree taken over, what its agent is told.

A launch that fails gives the worktree back as it was; see `launching.undo`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import anyio
import structlog

from chump_orchestrator.core.complaints import ExplainsFailures, withheld
from chump_orchestrator.core.dispatch import Command, Dispatch, Workspace
from chump_orchestrator.core.errors import ConfigError, Refused, Unavailable
from chump_orchestrator.core.outcome import PullState
from chump_orchestrator.core.records import DispatchState, Record, Watch
from chump_orchestrator.core.resuming import (
    Resumes,
    is_resumable,
    last_at_work,
    objection,
    resumption_brief,
    taking_over,
    watched_since,
)
from chump_orchestrator.daemon.launching import (
    Failed,
    Postponed,
    Unwanted,
    abort,
    give_back,
    planned,
    spawn_failed,
)

if TYPE_CHECKING:
    from chump_orchestrator.core.complaints import Complaint
    from chump_orchestrator.core.gap import Gap
    from chump_orchestrator.core.outcome import PullRequest
    from chump_orchestrator.core.ports import Backend, Ledger
    from chump_orchestrator.core.routing import Route
    from chump_orchestrator.daemon.launching import Begun
    from chump_orchestrator.daemon.world import World

log = structlog.get_logger()

LOOKED_BACK = 1000
"""Of so many dispatches of a gap the last one that had an agent is looked for."""

EXPLAINING_S = 60.0
"""How long a launch waits to be told what is held against the request."""


@dataclass(frozen=True, slots=True)
class Reopening:
    """Makes a dispatch that goes on with `former`; `times` as in `core.dispatch.Resumed`."""

    former: Record
    times: int = 0

    async def make(
        self,
        world: World,
        gap: Gap,
        route: Route,
        begun: Begun,
        on_id: Callable[[str], None],
        is_wanted: Callable[[], bool],
        making: anyio.CancelScope,
    ) -> Record | Failed | Postponed | Unwanted:
        """Plan the dispatch and take the worktree over; a record has it, as `former` had.

        The wish for it is fulfilled once it is on record: from then on recovery knows of it.
        """
        former, workspace = self.former, self.former.workspace
        try:
            attempt = await world.ledger.attempts(gap.id) + 1
        except Unavailable as error:
            return Postponed(str(error))
        if not is_wanted() or workspace is None:
            return Unwanted()
        resumed = taking_over(former, times=self.times)
        dispatch = planned(world, gap, route, begun, attempt, former.dispatch.names, resumed)
        on_id(dispatch.id)
        record = Record(dispatch, DispatchState.PLANNED)
        if resumed.number is not None and self.times:
            # The daemon's own follow-up: what people and checks may take goes on counting (P5).
            record = replace(record, pull=former.pull, pull_since=former.pull_since)
            record = replace(record, checks_failed_since=former.checks_failed_since)
        try:
            try:
                await world.ledger.add(dispatch)
            except (Unavailable, Refused) as error:
                return Postponed(str(error))
            try:
                # From here on whoever tidies up knows what to give back.
                await world.ledger.update(dispatch.id, replace(record, workspace=workspace))
                is_ours = await world.worktrees.hand_over(workspace, resumed.dispatch, dispatch.id)
            except (Unavailable, Refused) as error:
                reason = f"the worktree could not be taken over: {error}"
                return Failed(replace(record, workspace=workspace), spawn_failed(reason))
        except anyio.get_cancelled_exc_class():
            if making.cancel_called:
                with anyio.CancelScope(shield=True):
                    await give_back(world, dispatch, workspace)
                    await abort(world, dispatch)
            raise
        if not is_ours:
            return Failed(record, spawn_failed(_lost_place(workspace)))
        return replace(record, workspace=workspace)

    async def order(
        self, world: World, dispatch: Dispatch, workspace: Workspace
    ) -> tuple[str, Command]:
        """Return brief and command; `Refused` when the backend cannot go on with sessions."""
        complaints = await explained(world, self.former, self.former.pull)
        brief = resumption_brief(
            dispatch.gap, workspace, self.former, complaints, is_shipped=world.ships
        )
        backend = world.backend(dispatch.route.backend)
        command = resume_command(backend, dispatch.gap, dispatch.route, brief, dispatch.session)
        if command is None:
            raise Refused(_unable(dispatch.route.backend))
        return brief, command


async def former_of(
    gap_id: str,
    ledger: Ledger,
    holder: Callable[[Workspace], Awaitable[str]],
    backend: Callable[[str], Backend],
) -> Record:
    """Return the dispatch whose session a gap goes on with; `Refused` with why there is none.

    `holder` tells whose a worktree is, `backend` gives one by its name.
    """
    records = await ledger.latest(LOOKED_BACK, gap_id)
    is_shipped = gap_id in await ledger.shipped()
    if why := objection(gap_id, records, is_shipped=is_shipped):
        raise Refused(why)
    former = last_at_work(records)
    if former is None or former.workspace is None:
        raise Refused(f"{gap_id} has had no agent yet")
    dispatch = former.dispatch
    if not can_resume(backend, former):
        raise Refused(f"{_unable(dispatch.route.backend)}; `retry {gap_id}` begins anew")
    if await holder(former.workspace) != dispatch.id:
        raise Refused(f"{_lost_place(former.workspace)}; `retry {gap_id}` begins anew")
    return former


def can_resume(backend: Callable[[str], Backend], record: Record) -> bool:
    """Whether the backend of a dispatch can go on with its session."""
    dispatch = record.dispatch
    try:
        made = backend(dispatch.route.backend)
    except ConfigError:
        return False
    session = record.report.session
    return resume_command(made, dispatch.gap, dispatch.route, "", session) is not None


def resume_command(
    backend: Backend, gap: Gap, route: Route, prompt: str, session: str
) -> Command | None:
    """Return what goes on with a session, `None` where the backend cannot."""
    if not isinstance(backend, Resumes) or not session:
        return None
    try:
        return backend.resume_command(gap, route, prompt, session)
    except ConfigError:
        return None


def leaves_session(world: World, record: Record) -> bool:
    """Whether an ended dispatch can be gone on with, worktree and parked gap provided."""
    return is_resumable(record) and can_resume(world.backend, record)


async def explained(
    world: World, former: Record, pull: PullRequest | None
) -> tuple[Complaint, ...]:
    """Return what is held against the open request of a dispatch, without secrets.

    Nothing where there is no such request, or where nobody can tell now: a brief goes out all the
    same.
    """
    workspace, pulls = former.workspace, world.pulls
    if pull is None or pull.state is not PullState.OPEN or workspace is None:
        return ()
    if not isinstance(pulls, ExplainsFailures):
        return ()
    since = watched_since(former)
    watch = Watch(former.dispatch.id, workspace.branch, workspace.base, since, pull.number)
    found: tuple[Complaint, ...] = ()
    try:
        with anyio.fail_after(EXPLAINING_S):
            found = await pulls.explain(watch, pull)
    except (Unavailable, Refused, ConfigError, TimeoutError) as error:
        log.warning("complaints.unavailable", number=pull.number, error=str(error))
        return ()
    count, names = withheld(found)
    if count:
        log.warning("complaints.withheld", number=pull.number, count=count, by=", ".join(names))
    return tuple(
        replace(one, name=world.hide(one.name), text=world.hide(one.text)) for one in found
    )


def _unable(backend: str) -> str:
    return f"backend {backend} cannot go on with a session"


def _lost_place(workspace: Workspace) -> str:
    return f"the worktree {workspace.path} is gone, or is another dispatch's by now"
