"""Which of a gap's candidates has its turn (behaviour G5)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chump_orchestrator.core.attempts import Attempt
from chump_orchestrator.core.cascade import (
    Setback,
    account_of,
    after,
    hands_over,
    in_turn,
    named,
    next_after,
    remaining,
    rounds,
)
from chump_orchestrator.core.causes import Cause
from chump_orchestrator.core.gap import Effort
from chump_orchestrator.core.outcome import OutcomeKind
from chump_orchestrator.core.routing import Route, key_of
from tests.builders import NOW

ONE, TWO, THREE = Route("claude", "opus"), Route("claude", "sonnet"), Route("local", "", "GROQ")
ALL = (ONE, TWO, THREE)
KEYS = tuple(map(key_of, ALL))


def an_attempt(route: Route = ONE, gap: str = "A-1", **fields: Any) -> Attempt:
    """Return one that was killed as its rate was limited."""
    defaults: dict[str, Any] = {
        "dispatch": "a-1",
        "effort": Effort.S,
        "had_agent": True,
        "ended_at": NOW,
        "kind": OutcomeKind.KILLED,
        "cause": Cause.RATE_LIMITED,
    }
    return Attempt(gap=gap, route=route, **(defaults | fields))


@pytest.mark.parametrize(
    ("kind", "cause", "is_excused", "expected"),
    [
        (OutcomeKind.KILLED, Cause.RATE_LIMITED, False, True),
        (OutcomeKind.KILLED, Cause.AUTH, False, True),
        (OutcomeKind.STALLED, Cause.USAGE_LIMIT, True, True),
        (OutcomeKind.SPAWN_FAILED, Cause.SPAWN, True, True),
        (OutcomeKind.SPAWN_FAILED, Cause.SPAWN, False, False),
        (OutcomeKind.KILLED, Cause.EXIT_CODE, False, False),
        (OutcomeKind.KILLED, Cause.NETWORK, False, False),
        (OutcomeKind.CI_FAILED, Cause.AUTH, False, False),
        (OutcomeKind.SHIPPED, None, False, False),
        (None, None, False, False),
    ],
)
def test_what_hands_a_gap_over(
    kind: OutcomeKind | None, cause: Cause | None, is_excused: bool, expected: bool
) -> None:
    assert hands_over(kind, cause, is_excused=is_excused) is expected


def test_one_that_handed_over_is_asked_after_all_others() -> None:
    known = after({}, an_attempt(ONE))

    assert known == {key_of(ONE): Setback(Cause.RATE_LIMITED, NOW)}
    assert in_turn(ALL, known) == (TWO, THREE, ONE)
    assert next_after(ALL, {}, ONE) == TWO


def test_when_all_have_handed_over_the_walk_begins_anew() -> None:
    known = after(after(after({}, an_attempt(ONE)), an_attempt(TWO)), an_attempt(THREE))

    assert remaining(ALL, known) == ()
    assert in_turn(ALL, known) == ALL
    assert next_after(ALL, after(after({}, an_attempt(ONE)), an_attempt(TWO)), THREE) is None
    assert next_after(ALL, known, ONE) == TWO
    assert set(after(known, an_attempt(ONE))) == {key_of(ONE)}


def test_a_candidate_alone_hands_over_to_nobody() -> None:
    assert next_after((ONE,), {}, ONE) is None
    assert in_turn((ONE,), after({}, an_attempt(ONE))) == (ONE,)


def test_one_that_is_no_candidate_any_more_hands_over_to_those_that_are() -> None:
    """The table may have been changed while it was at work."""
    assert next_after((TWO, THREE), {}, ONE) == TWO


@pytest.mark.parametrize(
    "kind", [OutcomeKind.CANCELLED, OutcomeKind.RACE_ABANDONED, OutcomeKind.LOST]
)
def test_what_says_nothing_of_a_candidate_leaves_the_walk_where_it_was(kind: OutcomeKind) -> None:
    known = after({}, an_attempt(ONE))

    assert after(known, an_attempt(TWO, kind=kind, cause=None)) == known
    assert after(known, an_attempt(TWO, kind=None, cause=None)) == known


def test_a_dispatch_without_a_worktree_leaves_the_walk_where_it_was() -> None:
    known = after({}, an_attempt(ONE))
    no_room = an_attempt(TWO, kind=OutcomeKind.SPAWN_FAILED, cause=Cause.SPAWN)

    assert after(known, no_room) == known


def test_any_other_end_ends_the_walk() -> None:
    known = after({}, an_attempt(ONE))

    assert after(known, an_attempt(TWO, kind=OutcomeKind.SHIPPED, cause=None)) == {}
    assert after(known, an_attempt(TWO, cause=Cause.EXIT_CODE)) == {}


def test_the_walks_of_gaps_are_told_by_what_the_ledger_has() -> None:
    attempts = [
        an_attempt(ONE, "A-1"),
        an_attempt(ONE, "A-2"),
        an_attempt(ONE, "A-3", is_freed=True),
        an_attempt(TWO, "A-2", kind=OutcomeKind.SHIPPED, cause=None),
        an_attempt(TWO, "A-1", cause=Cause.AUTH),
    ]

    found = rounds(attempts)

    assert list(found) == ["A-1"]
    assert [one.cause for one in found["A-1"].values()] == [Cause.RATE_LIMITED, Cause.AUTH]


@given(st.lists(st.sampled_from(ALL), max_size=12))
def test_nobody_is_forgotten_and_nobody_asked_twice(failed: list[Route]) -> None:
    known = rounds(an_attempt(one) for one in failed).get("A-1", {})

    assert sorted(map(key_of, in_turn(ALL, known))) == sorted(KEYS)
    assert in_turn(ALL, known)[: len(remaining(ALL, known))] == remaining(ALL, known)


@given(st.integers(0, 20))
def test_a_walk_visits_every_candidate_once_before_any_twice(steps: int) -> None:
    asked: list[Route] = []
    for _ in range(steps):
        known = rounds(an_attempt(one) for one in asked).get("A-1", {})
        asked.append(in_turn(ALL, known)[0])

    assert asked == [ALL[number % 3] for number in range(steps)]


def test_models_share_an_account_and_providers_do_not() -> None:
    assert account_of(ONE) == account_of(TWO)
    assert account_of(THREE) != account_of(Route("local", "", "TOGETHER"))
    assert [named(one) for one in ALL] == ["claude opus", "claude sonnet", "local GROQ"]
