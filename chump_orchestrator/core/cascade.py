"""Which of a gap's candidates has its turn: the cascade, walked from one to the next (G5).

A candidate that could not do anything for a gap, for want of an account, a log-in or a program,
hands the gap over to the next of its route. Once all of them have, it is the first one's turn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from chump_orchestrator.core.attempts import Attempt
from chump_orchestrator.core.causes import Cause
from chump_orchestrator.core.deferred import dataclass
from chump_orchestrator.core.outcome import OutcomeKind
from chump_orchestrator.core.routing import Candidate, Route, key_of

HANDING_OVER = frozenset({Cause.USAGE_LIMIT, Cause.RATE_LIMITED, Cause.AUTH})
"""Causes that lie with whom a gap was given to, and not with the gap."""


@dataclass(frozen=True, slots=True)
class Setback:
    """Why a candidate handed a gap over, and when; `at` of `None` is not known."""

    cause: Cause
    at: datetime | None = None


Round = Mapping[Candidate, Setback]
"""The candidates of a gap that have handed it over since the walk began."""


def account_of(candidate: Route) -> tuple[str, str]:
    """Return whose allowance and log-in a candidate uses; its models share them."""
    return candidate.backend, candidate.provider_pfx


def hands_over(kind: OutcomeKind | None, cause: Cause | None, *, is_excused: bool) -> bool:
    """Say whether an attempt that ended so is for the next candidate to take up.

    A dispatch that could not even begin is excused when its backend's program was at fault; for
    want of a worktree no other candidate could have begun either.
    """
    if kind is OutcomeKind.SPAWN_FAILED:
        return is_excused
    return kind in (OutcomeKind.KILLED, OutcomeKind.STALLED) and cause in HANDING_OVER


def after(known: Round, attempt: Attempt) -> Round:
    """Return the round of a gap as an attempt at it leaves it."""
    if attempt.kind is None or attempt.kind.says_nothing:
        return known
    if not hands_over(attempt.kind, attempt.cause, is_excused=attempt.is_excused):
        is_silent = attempt.kind is OutcomeKind.SPAWN_FAILED
        return known if is_silent else {}
    this = key_of(attempt.route)
    setback = Setback(attempt.cause or Cause.SPAWN, attempt.ended_at)
    # One whose turn came again began a new walk.
    return {this: setback} if this in known else {**known, this: setback}


def rounds(attempts: Iterable[Attempt]) -> dict[str, Round]:
    """Return the rounds of all gaps, by attempts in the order in which they were begun."""
    found: dict[str, Round] = {}
    for attempt in attempts:
        if attempt.is_freed:
            continue
        known = after(found.get(attempt.gap, {}), attempt)
        if known:
            found[attempt.gap] = known
        else:
            found.pop(attempt.gap, None)
    return found


def attempts(ended: Iterable[Attempt]) -> dict[str, int]:
    """Return how many attempts at each gap have ended, whichever way."""
    return dict(Counter(one.gap for one in ended if one.kind is not None))


def remaining(candidates: Sequence[Route], known: Round) -> tuple[Route, ...]:
    """Return the candidates that have not handed the gap over in this round."""
    return tuple(one for one in candidates if key_of(one) not in known)


def in_turn(candidates: Sequence[Route], known: Round) -> tuple[Route, ...]:
    """Return the candidates in the order in which they are asked now.

    Those that have not had their turn in this round come first. The others follow: while all the
    rest have to be waited for, one that can be used again is better than none.
    """
    fresh = remaining(candidates, known)
    return (*fresh, *(one for one in candidates if key_of(one) in known))


def next_after(candidates: Sequence[Route], known: Round, failed: Route) -> Route | None:
    """Return who takes a gap over from `failed`; `None` when nobody is left of this round."""
    this = key_of(failed)
    if this in known and not remaining(candidates, known):
        known = {}
    rest = (one for one in remaining(candidates, known) if key_of(one) != this)
    return next(rest, None)


def named(candidate: Route) -> str:
    """Return what people call a candidate."""
    return " ".join(filter(None, key_of(candidate)))
