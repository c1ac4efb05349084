"""When not to try again: retries, parking, and the pause after a row of failures (behaviour X)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from chump_orchestrator.core.causes import Cause
from chump_orchestrator.core.gap import Gap
from chump_orchestrator.core.outcome import Outcome, OutcomeKind

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
"""How long a gap rests after a refused lease whose end is not known; doubles (behaviour X1)."""

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


@dataclass(frozen=True, slots=True)
class History:
    """What is known of a gap's earlier attempts, this one included.

    `failures` and `refusals` count attempts that failed and leases that were refused since an
    operator last freed the gap; `sessions` the agents started since its last accepted progress.
    """

    failures: int
    refusals: int
    sessions: int


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
) -> Consequence:
    """Decide what an outcome means for the gap's next attempt (behaviour X1, X2).

    `jitter` lies in 0 to 1 and stretches a backoff by up to a fifth. `clean` says whether
    nothing of the agent can be alive any more; `lease_ends_in` is when the lease that was in
    the way ends, where that is known.
    """
    match outcome.kind:
        case OutcomeKind.SHIPPED:
            return Free()
        case OutcomeKind.RACE_ABANDONED:
            doubled = LEASE_WAIT * 2 ** min(max(history.refusals - 1, 0), 10)
            return Retry(lease_ends_in or doubled, f"lease refused: {outcome.reason}")
        case OutcomeKind.CANCELLED if outcome.reason != "stopped by an operator":
            return Free()
        case OutcomeKind.CANCELLED:
            return Park("stopped by an operator")
        case _:
            return _after_failure(outcome, history, policy, jitter, clean=clean)


def _after_failure(
    outcome: Outcome, history: History, policy: RetryPolicy, jitter: float, *, clean: bool
) -> Consequence:
    what = f"{outcome.kind} ({outcome.reason or outcome.cause})"
    if outcome.cause is Cause.LOST and not clean:
        return Park(f"{what}; it could not be proved that nothing of the agent lives")
    if outcome.cause not in MAY_PASS or outcome.kind is OutcomeKind.CI_FAILED:
        return Park(f"{what}; cause {outcome.cause or Cause.UNKNOWN} is not tried again by itself")
    if history.failures >= policy.max_attempts:
        return Park(f"{what}; attempt {history.failures} of {policy.max_attempts} failed")
    if history.sessions >= policy.sessions:
        return Park(f"{what}; {history.sessions} sessions without accepted progress")
    doubled = policy.base * 2 ** min(max(history.failures - 1, 0), 30)
    wait = min(doubled, policy.cap) * (1 + jitter / 5)
    return Retry(wait, f"{what}; attempt {history.failures + 1} follows")


def fingerprint(gap: Gap) -> str:
    """Return a digest of what a parked gap is freed by when it changes (behaviour X2)."""
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
        """Return how many of `free` slots may be filled now."""
        if self.blown_until is None:
            return free
        return min(free, 1) if now >= self.blown_until and not self.trial else 0

    def started(self, dispatch: str) -> Fuse:
        """Take note that a dispatch was started; while blown, it is the trial."""
        return replace(self, trial=dispatch) if self.blown_until is not None else self

    def ended(self, dispatch: str, outcome: Outcome, now: datetime) -> Fuse:
        """Take note of an outcome: a failure counts, the trial's success resumes."""
        failed = outcome.is_failure
        if self.blown_until is not None and dispatch == self.trial:
            if failed:
                wait = min(self.wait * 2, LONGEST_PAUSE)
                return replace(self, trial="", wait=wait, blown_until=now + wait)
            if outcome.kind is OutcomeKind.SHIPPED:
                return Fuse()
            return replace(self, trial="")
        if not failed or outcome.cause is None:
            return self
        recent = tuple((c, at) for c, at in self.failures if now - at < ROW_WITHIN)
        recent = (*recent, (outcome.cause, now))
        noted = replace(self, failures=recent)
        alike = sum(1 for cause, _ in recent if cause is outcome.cause)
        if self.blown_until is None and alike >= ROW_OF_FAILURES:
            return replace(
                noted, cause=outcome.cause, wait=FIRST_PAUSE, blown_until=now + FIRST_PAUSE
            )
        return noted
