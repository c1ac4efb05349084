"""How candidates are ranked by what became of earlier dispatches (behaviour G4)."""

from __future__ import annotations

import math
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chump_orchestrator.core.learning import (
    Belief,
    Experience,
    Outcomes,
    experience,
    ranked,
)
from chump_orchestrator.core.outcome import OutcomeKind
from chump_orchestrator.core.routing import Candidate, Route, RoutePolicy, RoutingTable
from tests.builders import NOW, a_gap, a_reflection

TODAY = NOW.date()
ONE, TWO, THREE = Route("claude"), Route("codex"), Route("chump-local", "qwen")
A, B, C = ("claude", "", ""), ("codex", "", ""), ("chump-local", "qwen", "")
KIND = ("", "s")


def rows(candidate: Candidate = A, *, days_ago: int = 0, **fields: Any) -> Outcomes:
    day = TODAY - timedelta(days=days_ago)
    given: dict[str, Any] = {"outcome": "shipped"} | fields
    return Outcomes(KIND, candidate, day, **given)


def policy(*candidates: Route, **fields: Any) -> RoutePolicy:
    table = RoutingTable((), candidates or (ONE, TWO, THREE))
    given: dict[str, Any] = {"table": table, "learns": True} | fields
    return RoutePolicy(ONE, **given)


def believing(**beliefs: Belief) -> Experience:
    names = {"a": A, "b": B, "c": C}
    return Experience({KIND: {names[name]: belief for name, belief in beliefs.items()}})


def odds(known: Experience | None, *candidates: Route) -> dict[str, float]:
    found = ranked(a_gap(), policy(*candidates), known, 0)
    return {one.backend: one.odds for one in found if one.odds is not None}


def firsts(known: Experience, draws: int = 1500) -> dict[str, float]:
    """Return how often each candidate came first over many gaps."""
    came = Counter(ranked(a_gap(f"A-{n}"), policy(), known, 0)[0].backend for n in range(draws))
    return {backend: count / draws for backend, count in came.items()}


def test_what_shipped_and_what_failed_is_counted_by_kind_and_candidate() -> None:
    other = Outcomes(("research", "l"), B, TODAY, "ci_failed", count=2)

    known = experience([rows(count=3), rows(outcome="killed"), other], TODAY)

    assert known.beliefs == {
        KIND: {A: Belief(3.0, 1.0)},
        ("research", "l"): {B: Belief(0.0, 2.0)},
    }


def test_a_row_weighs_half_after_thirty_days_and_nothing_after_a_year() -> None:
    known = experience([rows(days_ago=30, count=4), rows(days_ago=366), rows(days_ago=-2)], TODAY)

    assert known.of(KIND, A) == Belief(3.0, 0.0)


@pytest.mark.parametrize("outcome", ["race_abandoned", "lost", "cancelled"])
def test_ends_that_say_nothing_count_as_neither(outcome: str) -> None:
    assert experience([rows(outcome=outcome)], TODAY) == Experience()


def test_a_usage_limit_is_nobodys_failure() -> None:
    """Behaviour X4."""
    known = experience([rows(outcome="killed", cause="usage-limit"), rows()], TODAY)

    assert known.of(KIND, A) == Belief(1.0, 0.0)


def test_what_an_attempt_costs_is_the_mean_of_those_that_told() -> None:
    told = [
        rows(count=3, usd=4.0, priced=2),
        rows(outcome="killed", usd=2.0, priced=1),
        rows(usd=math.inf, priced=1),
        rows(usd=1e308, priced=1),
        rows(outcome="killed", usd=math.nan, priced=1),
    ]

    assert experience(told, TODAY).of(KIND, A) == Belief(5.0, 2.0, 2.0)


def test_a_reflection_tells_the_same_as_its_row() -> None:
    told = Outcomes.told_by(a_reflection(task_class="research", cost_usd=1.5, model="opus"))

    assert told == Outcomes(
        ("research", "s"), ("claude", "opus", ""), TODAY, "shipped", usd=1.5, priced=1
    )
    assert Outcomes.told_by(a_reflection(cost_usd=None)).priced == 0
    assert Outcomes.told_by(a_reflection(cost_usd=0.0)).priced == 0


@pytest.mark.parametrize(
    ("first", "second", "exact"),
    [
        (Belief(), Belief(), 1 / 2),
        (Belief(shipped=1), Belief(), 2 / 3),
        (Belief(shipped=3), Belief(failed=3), 1 - 1 / math.comb(8, 4)),
        # Per dollar: one uniform draw beats a third of another one.
        (Belief(usd=1.0), Belief(usd=3.0), 5 / 6),
    ],
)
def test_odds_are_those_of_the_beta_distributions(
    first: Belief, second: Belief, exact: float
) -> None:
    found = odds(believing(a=first, b=second), ONE, TWO)

    assert found["claude"] == pytest.approx(exact, abs=2e-3)
    assert sum(found.values()) == pytest.approx(1.0)


def test_candidates_that_nobody_tried_have_even_odds() -> None:
    assert odds(None) == {name: pytest.approx(1 / 3) for name in ("claude", "codex", "chump-local")}


def test_one_whose_cost_is_not_known_counts_as_the_others_do_on_average() -> None:
    known = believing(a=Belief(usd=1.0), b=Belief(usd=3.0), c=Belief())
    alike = believing(a=Belief(usd=1.0), b=Belief(usd=3.0), c=Belief(usd=2.0))

    assert odds(known) == odds(alike)


def test_over_many_gaps_each_comes_first_as_often_as_its_odds_say() -> None:
    known = believing(a=Belief(30, 10), b=Belief(5, 3), c=Belief())

    found = firsts(known)

    for backend, likely in odds(known).items():
        assert found[backend] == pytest.approx(likely, abs=0.04)


def test_a_candidate_that_always_failed_is_seldom_asked_first_but_not_never() -> None:
    found = firsts(believing(a=Belief(9, 1), b=Belief(2, 3), c=Belief(0, 8)))

    assert found["claude"] > 0.9
    assert 0 < found["codex"] < 0.1


def test_whoever_asks_is_told_the_same_until_another_attempt_has_ended() -> None:
    known = believing(a=Belief(3, 3), b=Belief(3, 3), c=Belief(3, 3))
    gap = a_gap("A-1")

    assert ranked(gap, policy(), known, 1) == ranked(gap, policy(), known, 1)
    drawn = {ranked(gap, policy(), known, attempts)[0].backend for attempts in range(20)}
    assert drawn == {"claude", "codex", "chump-local"}


def test_each_candidate_says_what_is_known_of_it() -> None:
    found = ranked(a_gap(), policy(), believing(a=Belief(2, 1.5, 0.5)), 0)

    whys = {one.backend: one.why for one in found}
    assert "2.0 of 3.5 shipped at $0.50 each; default of the routing table" in whys["claude"]
    assert "not tried yet; default of the routing table" in whys["codex"]
    assert all(why.startswith("drawn with odds of 0.") for why in whys.values())


@pytest.mark.parametrize(
    "kept",
    [
        policy(learns=False),
        policy(override=Route("codex")),
        policy(TWO),
        RoutePolicy(ONE, learns=True),
    ],
)
def test_nothing_is_drawn_where_nothing_is_to_be_chosen(kept: RoutePolicy) -> None:
    """Behaviour G3: the operator's override outranks it, too."""
    found = ranked(a_gap(), kept, believing(b=Belief(100, 0)), 0)

    assert found[0].backend in ("claude", "codex")
    assert all(one.odds is None for one in found)


def test_a_candidate_that_is_listed_twice_is_ranked_once() -> None:
    found = ranked(a_gap(), policy(ONE, TWO, ONE), None, 0)

    assert sorted(one.backend for one in found) == ["claude", "codex"]


counts = st.floats(0, 1e9)
prices = st.none() | st.floats(1e-9, 1e9)


@given(st.lists(st.builds(Belief, counts, counts, prices), min_size=3, max_size=3), st.text())
def test_whatever_is_believed_all_are_ranked_and_the_odds_are_odds(
    beliefs: list[Belief], name: str
) -> None:
    known = Experience({KIND: dict(zip((A, B, C), beliefs, strict=True))})

    found = ranked(a_gap(name or "A-1"), policy(), known, 0)

    assert sorted(one.backend for one in found) == ["chump-local", "claude", "codex"]
    likely = [one.odds for one in found if one.odds is not None]
    assert all(0 <= one <= 1 for one in likely)
    assert sum(likely) == pytest.approx(1)


def test_every_outcome_is_success_failure_or_neither() -> None:
    counted = {
        kind: experience([rows(outcome=str(kind))], TODAY).of(KIND, A) for kind in OutcomeKind
    }

    assert counted.pop(OutcomeKind.SHIPPED) == Belief(1.0, 0.0)
    failures = {kind for kind, belief in counted.items() if belief == Belief(0.0, 1.0)}
    assert failures == {
        OutcomeKind.CI_FAILED,
        OutcomeKind.KILLED,
        OutcomeKind.STALLED,
        OutcomeKind.SPAWN_FAILED,
    }
