"""Observation in, verdict out: what to do about a dispatch (behaviour P1 to P5, O1)."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum

from chump_orchestrator.core.causes import Cause
from chump_orchestrator.core.deferred import dataclass
from chump_orchestrator.core.dispatch import Deadlines
from chump_orchestrator.core.pull import Checks, PullRequest, PullState, listed

__all__ = [
    "EXTENSION_LEAD",
    "SECOND_LOOK",
    "STOPPED_BY_OPERATOR",
    "Checks",
    "Exit",
    "Observation",
    "Outcome",
    "OutcomeKind",
    "PullRequest",
    "PullState",
    "Settle",
    "Stop",
    "StopReason",
    "Verdict",
    "Wait",
    "judge",
]

STOPPED_BY_OPERATOR = "stopped by an operator"
"""Reason of a dispatch that a person stopped; such a gap is not dispatched again by itself."""

SECOND_LOOK = timedelta(seconds=30)
"""At most this lies between the two looks that prove that no request was opened, or that one which
was closed stays so: to have checks run again, people close a request and open it at once (P4)."""

EXTENSION_LEAD = timedelta(seconds=20)
"""So long before the hard deadline the shim is told of the last one, so that a forge that is
silent just then stops nobody; a quarter of the soft deadline where that is shorter."""


class OutcomeKind(StrEnum):
    """How a dispatch ended; the strings are stable (behaviour O1)."""

    SHIPPED = "shipped"
    CI_FAILED = "ci_failed"
    STALLED = "stalled"
    KILLED = "killed"
    RACE_ABANDONED = "race_abandoned"
    SPAWN_FAILED = "spawn_failed"
    LOST = "lost"
    CANCELLED = "cancelled"

    @property
    def outcome_class(self) -> str:
        """`success`, `failure`, or `cancelled`, which counts as neither."""
        if self in (OutcomeKind.SHIPPED, OutcomeKind.RACE_ABANDONED):
            return "success"
        return "cancelled" if self is OutcomeKind.CANCELLED else "failure"

    @property
    def says_nothing(self) -> bool:
        """Whether it tells neither for nor against who did the work (behaviour G4)."""
        return self in (OutcomeKind.RACE_ABANDONED, OutcomeKind.LOST, OutcomeKind.CANCELLED)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a dispatch ended.

    `cause` is `None` for what is no failure, and where nothing is known but what the agent's
    last words may tell (see `causes.cause_of`). `reason` is for people: `exit code 7`.
    `resets_at` is when the account of a backend that has met its limit may be used again, `None`
    when it was not said.
    """

    kind: OutcomeKind
    reason: str = ""
    cause: Cause | None = None
    resets_at: datetime | None = None

    @property
    def is_failure(self) -> bool:
        """Whether it counts as a failure (behaviour O1)."""
        return self.kind.outcome_class == "failure"

    @property
    def met_limit(self) -> bool:
        """Whether the account's limit ended it, which is no failure of the gap (behaviour X4)."""
        ended_early = self.kind in (OutcomeKind.KILLED, OutcomeKind.STALLED)
        return ended_early and self.cause is Cause.USAGE_LIMIT


class StopReason(StrEnum):
    """Why an agent was stopped by us, as the shim writes it down."""

    DEADLINE = "deadline"
    OPERATOR = "operator"
    TEARDOWN = "teardown"
    HOST = "host"
    PULL_OVERTIME = "pull-overtime"


@dataclass(frozen=True, slots=True)
class Exit:
    """How an agent's process ended.

    Exactly one of `code` and `signal` is set, or `spawn_error` when it never ran. `stopped_by`
    is empty when it ended by itself. `out_of_memory` says for want of what memory it, or a part of
    it, was killed; empty when that is not so, as far as is known.
    """

    code: int | None = None
    signal: int | None = None
    stopped_by: str = ""
    spawn_error: str = ""
    lost: str = ""
    clean: bool = True
    active: timedelta = timedelta(0)
    peak_rss_bytes: int = 0
    cpu: timedelta = timedelta(0)
    out_of_memory: str = ""

    @property
    def in_words(self) -> str:
        """`exit code N` or `signal N`."""
        return f"signal {self.signal}" if self.signal is not None else f"exit code {self.code}"


@dataclass(frozen=True, slots=True)
class Observation:
    """What can be seen of a dispatch at one moment.

    `active` is the agent's active time so far, or in all once it has ended; `since_exit` the
    time since then. `pull` is the last answer of the forge, of whatever age, `None` when there
    was none. `looked` is how long before now that answer's question was put. `pull_opened` and
    `checks_failed` are how long ago the request was first seen as it is, open or closed, and
    failing checks were;
    `pull_seen_active` is the agent's active time when a request of this dispatch was first seen,
    whatever became of it since. `quiet_looks` and `quiet_span` count the looks whose question
    was put after the exit and that found no request, and the time from the first to the last.
    `watched` is how long this daemon has been asking about it, `None` for from the beginning: a
    forge that nobody asked was not silent.
    """

    active: timedelta
    exit: Exit | None = None
    since_exit: timedelta = timedelta(0)
    pull: PullRequest | None = None
    looked: timedelta | None = None
    pull_opened: timedelta = timedelta(0)
    pull_seen_active: timedelta = timedelta(0)
    checks_failed: timedelta | None = None
    quiet_looks: int = 0
    quiet_span: timedelta = timedelta(0)
    stop_asked: StopReason | None = None
    watched: timedelta | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to decide yet.

    `recheck` is after how much time to judge again even if nothing happens, `None` for only
    when something happens. `hard` is the agent's active time at which its shim should stop it,
    `None` for as it was told before. `look` asks for the forge's word soon: at once when it was
    not asked before, else as often as a forge that is silent may be asked.
    """

    overdue: bool = False
    recheck: timedelta | None = None
    hard: timedelta | None = None
    look: bool = False


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop the agent, then judge again."""

    reason: StopReason


@dataclass(frozen=True, slots=True)
class Settle:
    """The dispatch is over."""

    outcome: Outcome


Verdict = Wait | Stop | Settle


def judge(seen: Observation, deadlines: Deadlines) -> Verdict:
    """Decide what to do about a dispatch, given what can be seen of it.

    A merged pull request settles it whatever the exit code says. An open one stops the clock:
    from then on the merge queue and people own the timeline (behaviour P4). Nothing is settled
    on what the forge said before the moment in question, and before three soft deadlines nobody
    is stopped on it (P3). As time passes and nothing else happens, a verdict only ever moves on
    from waiting: it is not taken back.
    """
    if seen.exit is None:
        return _while_running(seen, deadlines)
    return _after_exit(seen, seen.exit, deadlines)


def _knows(seen: Observation, ago: timedelta) -> bool:
    """Say whether the forge answered a question that was put since the moment so long ago."""
    return seen.looked is not None and seen.looked <= ago


def _while_running(seen: Observation, deadlines: Deadlines) -> Verdict:
    if seen.stop_asked is not None:
        return Stop(seen.stop_asked)
    if seen.pull is not None and seen.pull.state in (PullState.OPEN, PullState.MERGED):
        # The request is what was asked for. The agent may finish what it is at, but opening
        # another one in its place does not give it more time.
        end = max(deadlines.hard, seen.pull_seen_active + deadlines.soft)
        if seen.active >= end:
            return Stop(StopReason.PULL_OVERTIME)
        return Wait(recheck=end - seen.active, hard=end)
    lead = min(EXTENSION_LEAD, deadlines.soft / 4)
    if seen.active < deadlines.soft:
        return Wait(recheck=deadlines.soft - seen.active)
    if seen.active < deadlines.hard - lead:
        return Wait(overdue=True, recheck=deadlines.hard - lead - seen.active)
    if seen.active < deadlines.hard:
        return Wait(overdue=True, recheck=deadlines.hard - seen.active, hard=deadlines.last)
    if seen.active >= deadlines.last or _knows(seen, seen.active - deadlines.hard):
        return Stop(StopReason.DEADLINE)
    left = deadlines.last - seen.active
    return Wait(overdue=True, recheck=left, hard=deadlines.last, look=True)


def _after_exit(seen: Observation, ended: Exit, deadlines: Deadlines) -> Verdict:
    if ended.spawn_error:
        return Settle(Outcome(OutcomeKind.SPAWN_FAILED, ended.spawn_error, Cause.SPAWN))
    pull = seen.pull
    match pull.state if pull is not None else PullState.NONE:
        case PullState.MERGED:
            return Settle(Outcome(OutcomeKind.SHIPPED, _named(pull, "merged")))
        case PullState.OPEN:
            return _open_request(seen, deadlines)
        case PullState.CLOSED if _knows(seen, seen.since_exit):
            return _closed_request(seen, deadlines)
        case PullState.NONE if _knows(seen, seen.since_exit):
            return _without_request(seen, ended, deadlines)
        case PullState.CLOSED | PullState.NONE:
            return _unanswered(seen, seen.since_exit, deadlines, "the agent had ended")


def _closed_request(seen: Observation, deadlines: Deadlines) -> Verdict:
    """Settle a closed request once it has stayed so from one look to another (P4)."""
    apart = min(SECOND_LOOK, deadlines.look_interval)
    if seen.looked is not None and seen.pull_opened - seen.looked >= apart:
        return Settle(Outcome(OutcomeKind.CI_FAILED, _named(seen.pull, "closed without a merge")))
    if seen.pull_opened < apart:
        return Wait(recheck=apart - seen.pull_opened)
    since = min(seen.since_exit, seen.pull_opened)
    return _unanswered(seen, since, deadlines, "its pull request was closed")


def _unanswered(seen: Observation, since: timedelta, deadlines: Deadlines, what: str) -> Verdict:
    """Wait for the forge's answer, or give up when it has been silent for too long (P3)."""
    silent = since if seen.watched is None else min(since, seen.watched)
    left = deadlines.pull - silent
    if left > timedelta(0):
        return Wait(recheck=left, look=True)
    reason = f"the forge gave no answer for {_rounded(deadlines.pull)} after {what}"
    return Settle(Outcome(OutcomeKind.STALLED, reason, Cause.NETWORK))


def _open_request(seen: Observation, deadlines: Deadlines) -> Verdict:
    """Wait for people and checks as long as they may take, by a look made since (P5)."""
    pull = seen.pull
    too_long = seen.pull_opened - deadlines.pull
    failing = None
    if seen.checks_failed is not None and pull is not None and pull.checks is Checks.FAILING:
        failing = seen.checks_failed - deadlines.ci_grace
    # What was pushed last, by the agent or for it, is another head: that has to be seen first.
    since = seen.since_exit if failing is None else min(failing, seen.since_exit)
    if failing is not None and failing >= timedelta(0) and _knows(seen, since):
        reason = _named(pull, f"has had failing checks for {_rounded(deadlines.ci_grace)}")
        if pull is not None and pull.failing:
            reason += f": {listed(pull.failing)}"
        return Settle(Outcome(OutcomeKind.CI_FAILED, reason))
    if too_long >= timedelta(0):
        if not _knows(seen, too_long):
            return _unanswered(seen, too_long, deadlines, "its pull request was to be merged")
        reason = _named(pull, f"open for {_rounded(deadlines.pull)} without a merge")
        return Settle(Outcome(OutcomeKind.STALLED, reason))
    if failing is None:
        return Wait(recheck=-too_long)
    if failing >= timedelta(0):
        return Wait(recheck=-too_long, look=True)
    return Wait(recheck=min(-too_long, -failing))


def _without_request(seen: Observation, ended: Exit, deadlines: Deadlines) -> Verdict:
    """Settle a dispatch whose agent is gone and that has no request, by a look made since."""
    match ended.stopped_by:
        case "" if ended.out_of_memory and ended.code != 0:
            return Settle(Outcome(OutcomeKind.KILLED, ended.out_of_memory, Cause.OUT_OF_MEMORY))
        case "" if ended.lost:
            return Settle(Outcome(OutcomeKind.LOST, ended.lost, Cause.LOST))
        case "":
            pass
        case StopReason.DEADLINE | StopReason.PULL_OVERTIME:
            reason = f"no pull request after {_rounded(seen.active)}, stopped at the deadline"
            return Settle(Outcome(OutcomeKind.KILLED, reason, Cause.DEADLINE))
        case StopReason.HOST:
            return Settle(Outcome(OutcomeKind.CANCELLED, "stopped with the host"))
        case StopReason.TEARDOWN:
            return Settle(Outcome(OutcomeKind.CANCELLED, "stopped with the orchestrator"))
        case _:
            return Settle(Outcome(OutcomeKind.CANCELLED, STOPPED_BY_OPERATOR))
    if ended.code != 0:
        return Settle(Outcome(OutcomeKind.KILLED, ended.in_words, Cause.EXIT_CODE))
    apart = min(SECOND_LOOK, deadlines.look_interval)
    if seen.quiet_looks > 1 and seen.quiet_span >= apart:
        reason = "the agent ended with exit code 0 and left no pull request"
        return Settle(Outcome(OutcomeKind.STALLED, reason, Cause.NO_PULL))
    first = seen.quiet_span + (seen.looked or timedelta(0))
    if seen.quiet_looks and first < apart:
        return Wait(recheck=apart - first)
    return _unanswered(seen, seen.since_exit, deadlines, "the agent had ended")


def _named(pull: PullRequest | None, what: str) -> str:
    if pull is None:
        return f"pull request {what}"
    return f"pull request {pull.number} {what}" if pull.number else f"branch {pull.branch} {what}"


def _rounded(span: timedelta) -> timedelta:
    return span - timedelta(microseconds=span.microseconds)
