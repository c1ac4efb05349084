"""The data that crosses the ports: what adapters tell the daemon, and what the ledger keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

from chump_orchestrator.core.deferred import dataclass
from chump_orchestrator.core.dispatch import Dispatch, Workspace
from chump_orchestrator.core.outcome import Exit, Outcome, OutcomeKind
from chump_orchestrator.core.pull import Checks, PullRequest, PullState
from chump_orchestrator.core.reflection import Reflection
from chump_orchestrator.core.shipping import Shipment
from chump_orchestrator.core.testimony import Progress, Report, Usage

if TYPE_CHECKING:
    from chump_orchestrator.core.turns import TurnsTaken

__all__ = [
    "Denied",
    "DispatchState",
    "ForgeBudget",
    "Lease",
    "Parked",
    "Pause",
    "Progress",
    "Recalled",
    "Record",
    "Remembered",
    "Removal",
    "Report",
    "Settlement",
    "Usage",
    "Watch",
]


@dataclass(frozen=True, slots=True)
class Watch:
    """A branch whose pull request is looked for.

    Only a request created after `since` (UTC, slack included) from a head that descends from a
    commit of this dispatch, made on top of `base`, is ours (behaviour P6). `accepted` is one that
    was found to be an earlier attempt's, which this dispatch goes on with.
    """

    dispatch: str
    branch: str
    base: str
    since: datetime
    number: int | None = None
    accepted: int | None = None


@dataclass(frozen=True, slots=True)
class Removal:
    """What became of a worktree: gone, or kept, with the reason and the salvage ref, if any."""

    removed: bool
    reason: str = ""
    salvage_ref: str = ""
    pushed: bool = False


@dataclass(frozen=True, slots=True)
class Lease:
    """Somebody's claim on a gap."""

    gap: str
    holder: str
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Denied:
    """A claim that was refused; `until` is when the other's lease ends, if known."""

    reason: str
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Recalled:
    """What was written down of a dispatch when its agent was launched, apart from the ledger.

    `launched_at` is when its agent was started, in UTC, `None` when none was, as far as is known.
    """

    dispatch: Dispatch
    workspace: Workspace
    launched_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Remembered:
    """How a dispatch ended, as its reflection tells; `pull_number` of `None` is none."""

    outcome: Outcome
    duration: timedelta
    pull_number: int | None = None


class DispatchState(StrEnum):
    """Where a dispatch is on its way; the order of effects is in docs/explanation."""

    PLANNED = "planned"
    LAUNCHING = "launching"
    RUNNING = "running"
    EXITED = "exited"
    SETTLED = "settled"
    DONE = "done"
    ABORTED = "aborted"

    @property
    def is_active(self) -> bool:
        """Whether it may still have an agent, or an outcome to come."""
        return self in (
            DispatchState.PLANNED,
            DispatchState.LAUNCHING,
            DispatchState.RUNNING,
            DispatchState.EXITED,
        )


@dataclass(frozen=True, slots=True)
class Record:
    """Everything the ledger knows of one dispatch.

    `lessons` are those of past reflections that its brief held (behaviour R7); `report` is what
    its agent had told when its session was known, and again when it had ended. `shipment` is how
    far the daemon has shipped it, `None` when its agent ships for itself. `corrected_at` is when a
    merge was heard of that made `corrected_from` a success, long after the end.
    """

    dispatch: Dispatch
    state: DispatchState
    workspace: Workspace | None = None
    pid: int | None = None
    launched_at: datetime | None = None
    exit: Exit | None = None
    exited_at: datetime | None = None
    pull: PullRequest | None = None
    pull_since: datetime | None = None
    pull_since_active: timedelta = timedelta(0)
    checks_failed_since: datetime | None = None
    outcome: Outcome | None = None
    ended_at: datetime | None = None
    siblings: int | None = None
    cost_usd: float | None = None
    tokens: int | None = None
    tidied: bool = False
    lessons: tuple[str, ...] = ()
    report: Report = field(default_factory=Report)
    shipment: Shipment | None = None
    corrected_at: datetime | None = None
    corrected_from: OutcomeKind | None = None

    @property
    def holds_slot(self) -> bool:
        """Whether it has an agent or is about to; one whose agent ended holds none (K4)."""
        return self.state.is_active and self.state is not DispatchState.EXITED

    @property
    def duration(self) -> timedelta | None:
        """From the launch (else the plan) to the end."""
        if self.ended_at is None:
            return None
        return max(self.ended_at - (self.launched_at or self.dispatch.created_at), timedelta(0))


@dataclass(frozen=True, slots=True)
class Parked:
    """What keeps a gap from being tried again; `until` of `None` means until it is freed."""

    gap: str
    reason: str
    fingerprint: str
    since: datetime
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Pause:
    """Dispatching is paused by an operator or by the daemon itself."""

    by: str
    reason: str
    since: datetime


@dataclass(frozen=True, slots=True)
class Settlement:
    """What is written in one transaction when a dispatch ends.

    `reflection` of `None` is for dispatches that ended without an agent's outcome worth one;
    `parked` of `None` frees the gap. `progress` says that something of it was accepted, `excused`
    that a failure does not count against the gap, such as that of a missing program (A4).
    `report` of `None` leaves what is on record. `unaccepted_usd` is what was spent after the last
    accepted progress, all of it without any (behaviour X2); `None` is not known. With `resume`
    above 0 the gap's session is wanted at once, as by an operator; it counts such sessions in a row
    (see `core.dispatch.Resumed`).
    """

    outcome: Outcome
    ended_at: datetime
    reflection: Reflection | None
    parked: Parked | None
    progress: bool
    siblings: int
    cost_usd: float | None = None
    tokens: int | None = None
    excused: bool = False
    report: Report | None = None
    unaccepted_usd: float | None = None
    resume: int = 0


@dataclass(frozen=True, slots=True)
class ForgeBudget:
    """What the forge was asked since the start, and what it grants until its budget is renewed.

    `points` is what its answers said they cost. `None` is what it has not told, or does not limit.
    """

    requests: int = 0
    points: int = 0
    left: int | None = None
    limit: int | None = None
    resets_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Vitals:
    """How a daemon fares at one moment, in numbers, for those who monitor it.

    `running` agents hold slots; `overdue` and `silent` ones are among them. `ready` gaps are
    eligible and wait, `parked` ones are kept from being tried again. `looks` and `failed_looks`,
    by kind, count since the start; `forge_silent_s` is for how long no look has succeeded, 0 when
    the last one did, and `forge_budget` what the forge was asked and grants, where it has one.
    `outbox` are reflections that no journal has yet, `unstored` records that the ledger has not.
    `budget` is the document of the day's (behaviour X3), `turns` are those of the event loop.
    `None` is what is not known now.
    """

    is_ready: bool
    is_paused: bool
    running: int
    overdue: int
    silent: int
    slots: int
    ready: int
    open_pulls: int
    is_backlog_stale: bool
    looks: int
    failed_looks: Mapping[str, int]
    forge_silent_s: float
    unstored: int
    parked: int | None = None
    outbox: int | None = None
    budget: Mapping[str, object] | None = None
    forge_budget: ForgeBudget | None = None
    turns: TurnsTaken | None = None


def with_sighting(
    record: Record, before: PullRequest | None, pull: PullRequest, now: datetime, active: timedelta
) -> Record:
    """Return the record with since when there is this request, and since when its checks fail.

    `before` is what was seen last, `active` the agent's active time. Checks of another head have
    failed anew.
    """
    if before is None or (before.state, before.number) != (pull.state, pull.number):
        first = record.pull_since_active
        if pull.state is not PullState.NONE and not first:
            first = active
        record = replace(record, pull_since=now, pull_since_active=first)
    if pull.checks is not Checks.FAILING:
        return replace(record, checks_failed_since=None)
    is_other = before is not None and before.head != pull.head
    if record.checks_failed_since is None or is_other:
        record = replace(record, checks_failed_since=now)
    return record
