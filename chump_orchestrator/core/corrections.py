"""Outcomes that a later merge puts right: which may be, for how long, and what is then written.

A dispatch that ended for the books without a merge leaves its request to the forge (behaviour P5).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Protocol

from chump_orchestrator.core.causes import Cause
from chump_orchestrator.core.deferred import dataclass
from chump_orchestrator.core.outcome import Outcome, OutcomeKind
from chump_orchestrator.core.pull import PullRequest, PullState
from chump_orchestrator.core.records import Record, Watch
from chump_orchestrator.core.reflection import Reflection
from chump_orchestrator.core.resuming import watched_since

ASKED_FOR = timedelta(days=30)
"""So long after its end a dispatch's request is asked about."""

SOONEST, LATEST = timedelta(minutes=5), timedelta(hours=3)
"""Between two questions about one such request; the older it is, the rarer they are."""

MOST = 500
"""So many of them are asked about, the latest."""

CORRECTABLE = (
    OutcomeKind.CI_FAILED,
    OutcomeKind.STALLED,
    OutcomeKind.KILLED,
    OutcomeKind.CANCELLED,
)


@dataclass(frozen=True, slots=True)
class Correction:
    """What is written in one transaction when a request is merged after all.

    `reflection` is what the journal should have been told, its tail left out. `ships` says whether
    the gap counts as shipped by it: not where its text has changed since.
    """

    outcome: Outcome
    at: datetime
    pull: PullRequest
    reflection: Reflection
    ships: bool = True


class CorrectedLedger(Protocol):
    """The part of the ledger that deals with outcomes that may be corrected."""

    async def late(self, since: datetime) -> tuple[Record, ...]:
        """Return dispatches that ended since then, oldest first, and may be corrected by outcome.

        Those that were corrected are not among them, nor those that another one has gone on with,
        whose request is its own now, nor more than the `MOST` latest.
        """
        ...

    async def sighted(self, dispatch_id: str, pull: PullRequest) -> None:
        """Store what was seen of the request of such a dispatch; quiet when it is none."""
        ...

    async def correct(self, dispatch_id: str, correction: Correction) -> bool:
        """Store the outcome and all its consequences; say whether that was still to be done.

        What the journal is to be told waits in an outbox of its own until it is delivered.
        """
        ...

    async def corrections(self) -> tuple[Reflection, ...]:
        """Return what the journal is still to be told, oldest first."""
        ...

    async def correction_delivered(self, dispatch_id: str) -> None:
        """Take a correction out of that outbox; quiet when it is not there."""
        ...


class CorrectedJournal(Protocol):
    """The part of the journal that puts right what it was told."""

    async def correct(self, reflection: Reflection) -> None:
        """Rewrite the rows of a reflection that was recorded; quiet where there are none.

        However often it is called, it comes to the same. `Unavailable` as for `record`.
        """
        ...


def may_ship_yet(record: Record, now: datetime) -> bool:
    """Whether a merge may still be heard of that puts this dispatch right.

    Its request was open or closed when it was last seen; or nobody could see, as the forge gave
    no answer.
    """
    outcome = record.outcome
    if outcome is None or outcome.kind not in CORRECTABLE or record.corrected_at is not None:
        return False
    if record.workspace is None or record.ended_at is None or now - record.ended_at >= ASKED_FOR:
        return False
    seen = record.pull.state if record.pull is not None else PullState.NONE
    unseen = seen is PullState.NONE and outcome.cause is Cause.NETWORK
    return unseen or seen in (PullState.OPEN, PullState.CLOSED)


def rest_of(age: timedelta) -> timedelta:
    """Return how long a request is left alone whose dispatch ended so long ago."""
    return min(max(age / 8, SOONEST), LATEST)


def watch_of(record: Record) -> Watch | None:
    """Return how a dispatch's request is asked about; `None` when it never had a branch."""
    dispatch, workspace = record.dispatch, record.workspace
    if workspace is None:
        return None
    before = dispatch.resumed.number if dispatch.resumed is not None else None
    since = watched_since(record)
    return Watch(dispatch.id, workspace.branch, workspace.base, since, accepted=before)


def correction(
    record: Record, pull: PullRequest, at: datetime, *, task_class: str, ships: bool
) -> Correction:
    """Return the correction of a settled dispatch whose request turns out to be merged."""
    was = record.outcome.kind if record.outcome is not None else ""
    name = f"pull request {pull.number}" if pull.number else f"branch {pull.branch}"
    outcome = Outcome(OutcomeKind.SHIPPED, f"{name} merged, after it had counted as {was}")
    dispatch = record.dispatch
    reflection = Reflection(
        dispatch=dispatch.id,
        gap=dispatch.gap.id,
        priority=dispatch.gap.priority,
        effort=dispatch.gap.effort,
        task_class=task_class,
        outcome=outcome.kind,
        cause=None,
        duration=record.duration or timedelta(0),
        pull_number=pull.number,
        backend=dispatch.route.backend,
        model=dispatch.route.model,
        provider_pfx=dispatch.route.provider_pfx,
        siblings=record.siblings or 0,
        tail=(),
        cost_usd=record.cost_usd,
        ended_at=record.ended_at or at,
        odds=dispatch.route.odds,
    )
    return Correction(outcome, at, pull, reflection, ships)


def latest_of_branches(records: Iterable[Record]) -> dict[str, Record]:
    """Return the records by branch; of those that share one, the one that comes last."""
    return {one.workspace.branch: one for one in records if one.workspace is not None}
