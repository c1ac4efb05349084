"""What follows an outcome: one reflection, the gap parked or freed, everything tidied up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import anyio
import structlog

from chump_orchestrator.core.attempts import Attempt
from chump_orchestrator.core.brakes import (
    Consequence,
    History,
    Park,
    Retry,
    consequence,
    fingerprint,
)
from chump_orchestrator.core.cascade import HANDING_OVER, named
from chump_orchestrator.core.causes import Cause, cause_of
from chump_orchestrator.core.errors import Refused, Unavailable
from chump_orchestrator.core.outcome import Outcome, OutcomeKind, PullState
from chump_orchestrator.core.records import Parked, Record, Settlement
from chump_orchestrator.core.reflection import Reflection
from chump_orchestrator.core.resets import resets_at, sound
from chump_orchestrator.core.resuming import consequence_for, made_progress, offer
from chump_orchestrator.core.routing import Route, task_class
from chump_orchestrator.core.tail import harmless
from chump_orchestrator.core.testimony import Report, Usage
from chump_orchestrator.daemon.launching import give_back
from chump_orchestrator.daemon.reopening import leaves_session

if TYPE_CHECKING:
    from chump_orchestrator.core.agent import Agent
    from chump_orchestrator.core.dispatch import Workspace
    from chump_orchestrator.daemon.supervisor import Supervisor
    from chump_orchestrator.daemon.world import World

log = structlog.get_logger()

LOOK_S = 10.0
"""How long it may take to find out whether something of a dispatch was pushed."""

UNTIDY_S, LONGEST_UNTIDY_S = 1.0, 30.0
"""Between two attempts to tidy up after a dispatch, doubling, and from where on to give up."""

AGAIN_S = 5.0
"""Between two attempts to write down an outcome: it is delayed, never dropped."""


async def settle(
    world: World,
    record: Record,
    outcome: Outcome,
    *,
    agent: Agent | None,
    siblings: int,
    report: Report,
    lease_ends_at: datetime | None = None,
    backend_at_fault: bool = False,
    ended_at: datetime | None = None,
    heir: Callable[[Outcome], Route | None] = lambda _: None,
    accepted_usd: float | None = None,
    resume: int = 0,
) -> Outcome:
    """Write the outcome down and put its reflection into the outbox, in one transaction.

    `ended_at` of `None` is now. `heir` says who takes the gap over from a dispatch that ended so
    (behaviour G5); `accepted_usd` is what was spent when its last progress was accepted, `None`
    when that is not known; `resume` as in `core.records.Settlement`.

    Returns the outcome with its cause. A ledger that does not answer delays it; cancelled
    meanwhile, nothing is settled, and the next start does it from the record. Once written, it is
    told in any case.
    """
    ended_at = ended_at or world.clock.now()
    if outcome.is_failure:
        outcome = _explained(world, outcome, _words(outcome, agent, report), report, ended_at)
    outcome = replace(outcome, reason=world.hide(outcome.reason))
    report = replace(report, resets_at=outcome.resets_at)
    progress = await _has_progressed(world, record)
    follower = heir(outcome)
    with world.storing():
        while True:
            try:
                with anyio.CancelScope(shield=True):
                    settlement = await _settlement(
                        world,
                        record,
                        outcome,
                        agent,
                        ended_at=ended_at,
                        progress=progress,
                        siblings=siblings,
                        report=report,
                        lease_ends_at=lease_ends_at,
                        backend_at_fault=backend_at_fault,
                        heir=named(follower) if follower is not None else "",
                        accepted_usd=accepted_usd,
                    )
                    settlement = replace(settlement, resume=resume)
                    await world.ledger.settle(record.dispatch.id, settlement)
                    _tell(world, record, outcome, settlement)
                    return outcome
            except Unavailable as error:
                log.warning("ledger.unavailable", error=str(error))
                await anyio.sleep(AGAIN_S)


def _words(outcome: Outcome, agent: Agent | None, report: Report) -> str:
    """Return all that may tell why a dispatch failed.

    An agent's stream of events quotes whatever it has read and written. Of such a one only what
    it says itself counts, beside its standard error.
    """
    if agent is None:
        return report.words or outcome.reason
    ends = agent.last_words(errors_only=report.is_stream)
    return "\n".join((*agent.tail(), ends, report.words))


def _explained(
    world: World, outcome: Outcome, words: str, report: Report, ended_at: datetime
) -> Outcome:
    """Return a failure with its cause, and when a limit that it met is renewed, if that is told.

    Where nothing is known of a cause, the agent has opened a request, and whatever became of
    that is not for want of an allowance.
    """
    cause = cause_of(outcome.cause, words)
    if outcome.cause is None and cause in HANDING_OVER:
        cause = Cause.UNKNOWN
    outcome = replace(outcome, cause=cause)
    if not outcome.met_limit:
        return outcome
    return replace(outcome, resets_at=_reset(world, words, report, ended_at))


def _reset(world: World, words: str, report: Report, at: datetime) -> datetime | None:
    """Return when a limit that was met is renewed, `None` where that was not told."""
    told = sound(report.resets_at, at) if report.resets_at is not None else None
    return told or resets_at(words, at, world.zone)


def met_by(world: World, supervisor: Supervisor) -> tuple[Cause, str, datetime | None] | None:
    """Return what has kept an agent that has just ended from its work, as it says itself.

    The cause, how it ended, and the reset of a limit, where told; `None` when it was none of those
    that hand a gap over. What becomes of its dispatch is not known yet, and may take long.
    """
    ended, report = supervisor.exit, supervisor.report
    if ended is None or ended.stopped_by or ended.lost or ended.spawn_error:
        return None
    if supervisor.pull is not None and supervisor.pull.state is not PullState.NONE:
        return None
    how = Outcome(OutcomeKind.KILLED, ended.in_words, Cause.EXIT_CODE)
    words = report.failure if ended.code == 0 else _words(how, supervisor.agent, report)
    cause = cause_of(how.cause, words)
    if cause not in HANDING_OVER:
        return None
    ended_at = supervisor.agent.ended_at if supervisor.agent is not None else None
    at = supervisor.record.exited_at or ended_at or world.clock.now()
    return cause, how.reason, _reset(world, words, report, at)


def attempt_of(
    record: Record, outcome: Outcome, used: Usage, now: datetime, *, is_excused: bool
) -> Attempt:
    """Return in brief what a settled dispatch came to."""
    dispatch = record.dispatch
    return Attempt(
        dispatch=dispatch.id,
        gap=dispatch.gap.id,
        effort=dispatch.gap.effort,
        route=dispatch.route,
        had_agent=record.launched_at is not None,
        ended_at=record.exited_at or now,
        kind=outcome.kind,
        cause=outcome.cause,
        cost_usd=used.cost_usd,
        tokens=used.tokens,
        is_excused=is_excused and outcome.is_failure,
    )


async def _has_progressed(world: World, record: Record) -> bool:
    """Say whether something of a dispatch was accepted: a request, or a commit that was pushed."""
    if made_progress(record):
        return True
    if record.pull is not None and record.pull.state is not PullState.NONE:
        return False
    if world.has_pushed is None or record.workspace is None or record.launched_at is None:
        return False
    if record.dispatch.resumed is not None:  # what is there may be an earlier attempt's
        return False
    trouble = "it took too long to tell"
    try:
        # An outcome does not wait for a git that hangs.
        with anyio.move_on_after(LOOK_S):
            return await world.has_pushed(record.workspace, record.dispatch.id)
    except (Unavailable, Refused) as error:
        trouble = str(error)
    log.warning("progress.unknown", dispatch=record.dispatch.id, error=trouble)
    return False


def _unaccepted(
    cost_usd: float | None, accepted_usd: float | None, *, progress: bool
) -> float | None:
    """Return what was spent after the last accepted progress; `None` where nothing is known."""
    if cost_usd is None or not progress:
        return cost_usd
    return 0.0 if accepted_usd is None else max(cost_usd - accepted_usd, 0.0)


async def _settlement(
    world: World,
    record: Record,
    outcome: Outcome,
    agent: Agent | None,
    *,
    ended_at: datetime,
    progress: bool,
    siblings: int,
    report: Report,
    lease_ends_at: datetime | None,
    backend_at_fault: bool,
    heir: str,
    accepted_usd: float | None,
) -> Settlement:
    dispatch = record.dispatch
    is_excused = backend_at_fault or outcome.met_limit or bool(heir)
    unaccepted_usd = _unaccepted(report.usage.cost_usd, accepted_usd, progress=progress)
    before = await world.ledger.history(dispatch.gap.id)
    history = History(
        failures=before.failures + (outcome.is_failure and not is_excused),
        refusals=before.refusals + (outcome.kind is OutcomeKind.RACE_ABANDONED),
        sessions=0 if progress else before.sessions,
        usd=(0.0 if progress else before.usd) + (unaccepted_usd or 0.0),
    )
    clean = record.exit is None or record.exit.clean
    what: Consequence | None = None
    if not backend_at_fault:
        wait = lease_ends_at - ended_at if lease_ends_at is not None else None
        what = consequence(
            outcome,
            history,
            world.policies.retry,
            world.chance.random(),
            clean=clean,
            lease_ends_in=wait,
            heir=heir,
        )
    what = consequence_for(dispatch, what, outcome)
    if isinstance(what, Park) and _may_go_on(world, replace(record, report=report)):
        what = Park(f"{what.reason}; {offer(dispatch.gap.id, outcome)}")
    parked = _parked(what, record, ended_at)
    began = record.launched_at or dispatch.created_at
    reflection = Reflection(
        dispatch=dispatch.id,
        gap=dispatch.gap.id,
        priority=dispatch.gap.priority,
        effort=dispatch.gap.effort,
        task_class=task_class(dispatch.gap.id, world.policies.routes.classes),
        outcome=outcome.kind,
        cause=outcome.cause,
        duration=max(ended_at - began, timedelta(0)),
        pull_number=record.pull.number if record.pull else None,
        backend=dispatch.route.backend,
        model=dispatch.route.model,
        provider_pfx=dispatch.route.provider_pfx,
        siblings=siblings,
        tail=_storable(world, agent.tail()) if agent else (),
        cost_usd=report.usage.cost_usd,
        ended_at=ended_at,
        odds=dispatch.route.odds,
    )
    return Settlement(
        outcome=outcome,
        ended_at=ended_at,
        reflection=reflection if world.journal is not None else None,
        parked=parked,
        progress=progress,
        siblings=siblings,
        cost_usd=report.usage.cost_usd,
        tokens=report.usage.tokens,
        excused=is_excused,
        report=report,
        unaccepted_usd=unaccepted_usd,
    )


def _may_go_on(world: World, record: Record) -> bool:
    """Whether a parked gap's session can be gone on with: this one's, or that it was to have."""
    if record.dispatch.resumed is not None and record.launched_at is None:
        return True
    return leaves_session(world, record)


def _storable(world: World, tail: Sequence[str]) -> tuple[str, ...]:
    """Return an agent's telling lines without secrets, and without what would move a terminal."""
    return tuple(world.hide(harmless(line).replace("\n", " ")) for line in tail)


def _parked(what: object, record: Record, now: datetime) -> Parked | None:
    gap = record.dispatch.gap
    match what:
        case Park(reason):
            return Parked(gap.id, reason, fingerprint(gap), now)
        case Retry(after, reason):
            return Parked(gap.id, reason, fingerprint(gap), now, now + after)
        case _:
            return None


def _tell(world: World, record: Record, outcome: Outcome, settlement: Settlement) -> None:
    dispatch = record.dispatch
    began = record.launched_at or dispatch.created_at
    fields: dict[str, object] = {
        "outcome": str(outcome.kind),
        "cause": str(outcome.cause) if outcome.cause else None,
        "reason": outcome.reason,
        "pull": record.pull.number if record.pull else None,
        "duration_s": max(round((settlement.ended_at - began).total_seconds()), 0),
        "siblings": settlement.siblings,
        "cost_usd": settlement.cost_usd,
        "tokens": settlement.tokens,
        "turns": settlement.report.usage.turns if settlement.report else None,
        "next": settlement.parked.reason if settlement.parked else "",
    }
    who = {"gap": dispatch.gap.id, "dispatch": dispatch.id, "backend": dispatch.route.backend}
    # Recovery settles, too, where nothing of this is bound.
    log.info("dispatch.settled", **who, attempt=dispatch.attempt, **fields)
    world.tell("dispatch.settled", **who, **fields)


async def tidy(world: World, record: Record) -> bool:
    """Release the lease and remove the worktree of an ended dispatch, if nothing is lost by it.

    That of a parked gap whose session can be gone on with stays as it is; one that was taken over
    by a dispatch that never had an agent goes back. Says whether that is done; if not, the next
    start finds it untidied. Cancelling is safe at any moment.
    """
    dispatch = record.dispatch
    try:
        await world.leases.release(dispatch.id)
        if record.workspace is not None:
            await _leave(world, record, record.workspace)
        await world.ledger.tidied(dispatch.id)
    except (Unavailable, Refused) as error:
        log.warning("dispatch.untidied", dispatch=dispatch.id, error=str(error))
        return False
    world.tell("dispatch.tidied", gap=dispatch.gap.id, dispatch=dispatch.id)
    return True


async def tidy_patiently(world: World, record: Record) -> None:
    """Tidy up after a dispatch, again and again for a while; the next start does it otherwise."""
    wait_s = UNTIDY_S
    while not await tidy(world, record) and wait_s < LONGEST_UNTIDY_S:
        await anyio.sleep(wait_s)
        wait_s *= 2


async def _leave(world: World, record: Record, workspace: Workspace) -> None:
    dispatch = record.dispatch
    if dispatch.resumed is not None and record.launched_at is None:
        await give_back(world, dispatch, workspace)
        return
    if leaves_session(world, record):
        parked = await world.ledger.parked()
        if any(one.gap == dispatch.gap.id and one.until is None for one in parked):
            await world.worktrees.keep(workspace, dispatch.id)
            return
    await world.worktrees.remove(workspace, dispatch.id)
