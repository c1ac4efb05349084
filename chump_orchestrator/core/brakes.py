"""When not to try again: retries, parking, and the pause after a row of failures (behaviour X)."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from chump_orchestrator.core.causes import Cause
from chump_orchestrator.core.deferred import dataclass
from chump_orchestrator.core.gap import Gap
from chump_orchestrator.core.outcome import (
    STOPPED_BY_OPERATOR,
    Checks,
    Outcome,
    OutcomeKind,
    PullRequest,
    PullState,
)

MAY_PASS = frozenset(
    {
        Cause.NETWORK,
        Cause.RATE_LIMITED,
        Cause.OUT_OF_MEMORY,
        Cause.EXIT_CODE,
        Cause.SPAWN,
        Cause.LOST,
    }
)
"""Causes that may be gone at the next attempt (behaviour X1)."""

LEASE_WAIT = timedelta(minutes=5)
LONGEST_LEASE_WAIT = timedelta(hours=4)
"""How long a gap rests after a refused lease whose end is not known; doubles (behaviour X1), up
to what a lease lasts that nobody renews."""

ROW_OF_FAILURES = 5
ROW_WITHIN = timedelta(hours=1)
FIRST_PAUSE = timedelta(minutes=15)
LONGEST_PAUSE = timedelta(hours=4)
"""Five failures of one cause within an hour pause dispatching (behaviour X5)."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a gap is tried, how long is waited in between, and when patience ends."""

    max_attempts: int = 2
    base: timedelta = timedelta(seconds=10)
    cap: timedelta = timedelta(minutes=5)
    sessions: int = 3
    usd: float = 0.0
    """Dollars that may be spent without accepted progress; 0 stands for no limit."""


@dataclass(frozen=True, slots=True)
class History:
    """What is known of a gap's earlier attempts, this one included.

    `failures` and `refusals` count attempts that failed and leases that were refused since an
    operator last freed the gap; `sessions` the agents started since its last accepted progress,
    and `usd` what has been spent since then, as far as agents told.
    """

    failures: int
    refusals: int
    sessions: int
    usd: float = 0.0


@dataclass(frozen=True, slots=True)
class Free:
    """The gap may be picked again, or is done."""


@dataclass(frozen=True, slots=True)
class Retry:
    """The gap may be picked again after a while."""

    after: timedelta
    reason: str


@dataclass(frozen=True, slots=True)
class Park:
    """The gap is not picked again before somebody frees it or its text changes."""

    reason: str


Consequence = Free | Retry | Park


def consequence(
    outcome: Outcome,
    history: History,
    policy: RetryPolicy,
    jitter: float,
    *,
    clean: bool = True,
    lease_ends_in: timedelta | None = None,
    heir: str = "",
) -> Consequence:
    """Decide what an outcome means for the gap's next attempt (behaviour X1, X2).

    `jitter` lies in 0 to 1 and stretches a backoff by up to a fifth, never beyond its cap.
    `clean` says whether nothing of the agent can be alive any more; `lease_ends_in` is when the
    lease that was in the way ends, where that is known. `heir` names the candidate that takes the
    gap over (behaviour G5), empty where there is none.
    """
    match outcome.kind:
        case OutcomeKind.SHIPPED:
            return Free()
        case OutcomeKind.RACE_ABANDONED:
            wait = _doubled(LEASE_WAIT, history.refusals, LONGEST_LEASE_WAIT)
            if lease_ends_in is not None and lease_ends_in > timedelta(0):
                wait = lease_ends_in
            return Retry(wait, f"lease refused: {outcome.reason}")
        case _:
            return _without_success(outcome, history, policy, jitter, clean=clean, heir=heir)


def _without_success(
    outcome: Outcome,
    history: History,
    policy: RetryPolicy,
    jitter: float,
    *,
    clean: bool,
    heir: str,
) -> Consequence:
    what = f"{outcome.kind} ({outcome.reason or outcome.cause or Cause.UNKNOWN})"
    if not clean:
        return Park(f"{what}; it could not be proved that nothing of the agent lives")
    if outcome.met_limit:
        return _unless_spent(f"{what}; the account met its limit", history, policy) or Free()
    if heir:
        return _unless_spent(f"{what}; {heir} would follow", history, policy) or Free()
    if outcome.kind is OutcomeKind.CANCELLED:
        if outcome.reason == STOPPED_BY_OPERATOR:
            return Park(STOPPED_BY_OPERATOR)
        return _unless_dear(what, history, policy) or Free()
    if outcome.cause not in MAY_PASS or outcome.kind is OutcomeKind.CI_FAILED:
        return Park(f"{what}; cause {outcome.cause or Cause.UNKNOWN} is not tried again by itself")
    if history.failures >= policy.max_attempts:
        return Park(f"{what}; attempt {history.failures} of {policy.max_attempts} failed")
    wait = _doubled(policy.base, history.failures, policy.cap) * (1 + jitter / 5)
    again = Retry(min(wait, policy.cap), f"{what}; attempt {history.failures + 1} follows")
    return _unless_spent(what, history, policy) or again


def _unless_spent(what: str, history: History, policy: RetryPolicy) -> Park | None:
    """Park the gap when as many sessions as are allowed have brought no accepted progress (X2)."""
    if history.sessions < policy.sessions:
        return _unless_dear(what, history, policy)
    return Park(f"{what}; {history.sessions} sessions without accepted progress")


def _unless_dear(what: str, history: History, policy: RetryPolicy) -> Park | None:
    """Park the gap when as much as is allowed was spent on it without accepted progress (X2)."""
    if not policy.usd or history.usd < policy.usd:
        return None
    spent, allowed = f"${history.usd:,.2f}", f"${policy.usd:,.2f}"
    return Park(f"{what}; {spent} of {allowed} spent without accepted progress (brake.usd)")


def is_accepted(before: PullRequest | None, seen: PullRequest) -> bool:
    """Say whether a look shows accepted progress beyond the one before it (behaviour X2).

    That is a request that was opened or merged, another commit pushed to it, or its checks turned
    green. `before` of `None` is none seen yet.
    """
    if seen.state is PullState.NONE:
        return False
    if before is None or before.state is PullState.NONE:
        return True
    is_merged = seen.state is PullState.MERGED and before.state is not PullState.MERGED
    is_pushed = bool(seen.head and before.head) and seen.head != before.head
    is_green = seen.checks is Checks.PASSING and before.checks is not Checks.PASSING
    return is_merged or is_pushed or is_green


def _doubled(first: timedelta, times: int, cap: timedelta) -> timedelta:
    """Return `first`, doubled each time after the first, at most `cap`."""
    seconds = first.total_seconds() * 2.0 ** min(max(times - 1, 0), 60)
    return timedelta(seconds=min(seconds, cap.total_seconds()))


def fingerprint(gap: Gap) -> str:
    """Return a digest of what a parked gap is freed by when it changes (behaviour X2)."""
    import hashlib  # noqa: PLC0415 - half as long about as all that a plan imports of core

    digest = hashlib.sha256()
    for part in (gap.title, gap.description, *gap.acceptance, "\0", *gap.depends_on):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Fuse:
    """Pauses dispatching after a row of failures of one cause, and tries again (behaviour X5).

    `blown_until` is when one trial dispatch may start, `None` while all is well. `trial` is the
    id of that dispatch while it runs.
    """

    failures: tuple[tuple[Cause, datetime], ...] = ()
    cause: Cause | None = None
    blown_until: datetime | None = None
    wait: timedelta = timedelta(0)
    trial: str = ""

    def allows(self, now: datetime, free: int) -> int:
        """Return how many of `free` slots may be filled now.

        A pause that seems to last longer than it was set for comes from a clock that was put
        back, and is over.
        """
        if self.blown_until is None:
            return free
        left = self.blown_until - now
        return min(free, 1) if not timedelta(0) < left <= self.wait and not self.trial else 0

    def started(self, dispatch: str) -> Fuse:
        """Take note that a dispatch was started; while blown, the first one is the trial."""
        if self.blown_until is None or self.trial:
            return self
        return replace(self, trial=dispatch)

    def forgotten(self, dispatch: str) -> Fuse:
        """Take note that a dispatch ended without an outcome; was it the trial, another follows."""
        return replace(self, trial="") if self.trial == dispatch else self

    def ended(
        self, dispatch: str, outcome: Outcome, now: datetime, *, is_excused: bool = False
    ) -> Fuse:
        """Take note of an outcome: a failure counts, the trial's success resumes.

        One that `is_excused` does not count, as somebody else takes the gap over.
        """
        failed = outcome.is_failure and not (outcome.met_limit or is_excused)
        if self.blown_until is not None and dispatch == self.trial:
            if failed:
                wait = min(self.wait * 2, LONGEST_PAUSE)
                return replace(self, trial="", wait=wait, blown_until=now + wait)
            if outcome.kind is OutcomeKind.SHIPPED:
                return Fuse()
            return replace(self, trial="")
        if not failed:
            return self
        cause = outcome.cause or Cause.UNKNOWN
        recent = tuple((c, at) for c, at in self.failures if now - at <= ROW_WITHIN)
        noted = replace(self, failures=(*recent, (cause, now)))
        alike = sum(1 for other, _ in noted.failures if other is cause)
        if self.blown_until is None and alike >= ROW_OF_FAILURES:
            return replace(noted, cause=cause, wait=FIRST_PAUSE, blown_until=now + FIRST_PAUSE)
        return noted
