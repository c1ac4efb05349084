"""When money or tokens keep from dispatching (behaviour X3)."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chump_orchestrator.core.attempts import Attempt
from chump_orchestrator.core.backlog import Hold, HoldKind
from chump_orchestrator.core.budget import (
    AtWork,
    BudgetPolicy,
    Estimate,
    Outlook,
    Spent,
    Verdict,
    day_of,
    document,
    estimate,
    held_back,
    in_words,
    outlook,
    over_budget,
    spent_between,
    spent_on_gaps,
    used,
    verdict,
)
from chump_orchestrator.core.gap import Effort
from chump_orchestrator.core.outcome import OutcomeKind
from chump_orchestrator.core.routing import Route
from tests.builders import NOW, a_backlog, a_gap

FIVE = BudgetPolicy(usd_per_day=5.0)

money = st.floats(0, 1000, allow_nan=False)
amounts = st.one_of(st.none(), money)
counts = st.integers(0, 50)
tokens = st.integers(0, 10**9)


def an_attempt(gap: str = "A-1", **fields: Any) -> Attempt:
    """Return an attempt with claude that failed just now and cost a dollar."""
    defaults: dict[str, Any] = {
        "dispatch": f"{gap.lower()}-1",
        "effort": Effort.S,
        "route": Route("claude"),
        "had_agent": True,
        "ended_at": NOW,
        "kind": OutcomeKind.KILLED,
        "cost_usd": 1.0,
        "tokens": 1000,
    }
    return Attempt(gap=gap, **(defaults | fields))


def a_day(usd: float = 0.0, **fields: Any) -> Outlook:
    return Outlook(Spent(usd=usd), **fields)


@st.composite
def days(draw: st.DrawFn) -> Outlook:
    spent = Spent(draw(money), draw(tokens), draw(counts), draw(counts))
    return Outlook(spent, draw(counts), draw(money), draw(tokens))


@st.composite
def policies(draw: st.DrawFn) -> BudgetPolicy:
    limit = st.one_of(st.just(0.0), st.floats(0.01, 1000))
    return BudgetPolicy(
        draw(limit), draw(limit), draw(st.one_of(st.just(0), st.integers(1, 10**9)))
    )


@st.composite
def estimates(draw: st.DrawFn) -> Estimate:
    return Estimate(draw(amounts), draw(st.one_of(st.none(), tokens)))


def test_without_budgets_nothing_is_held() -> None:
    spent = a_day(1e9, at_work=100, rest_usd=1e9)

    assert verdict(BudgetPolicy(), spent, Estimate(1e9, 10**12), "00:00") == Verdict()


def test_a_budget_that_is_reached_says_until_when_and_what_helps() -> None:
    held = verdict(FIVE, a_day(5.25), Estimate(), "00:00")

    assert held.reached == ("usd_per_day",)
    assert held.reason == (
        "budget reached until 00:00: $5.25 of $5.00 a day (budget.usd_per_day);"
        " raise it and reload to go on sooner"
    )


def test_both_budgets_that_are_reached_are_named() -> None:
    policy = BudgetPolicy(usd_per_day=5.0, tokens_per_day=1000)
    held = verdict(policy, Outlook(Spent(5.0, 1000)), Estimate(), "00:00")

    assert held.reached == ("usd_per_day", "tokens_per_day")
    assert "$5.00 of $5.00 and 1,000 tokens of 1,000 tokens a day" in held.reason


def test_one_that_is_nearly_reached_says_what_is_expected() -> None:
    held = verdict(FIVE, a_day(3.0, at_work=2, rest_usd=1.5), Estimate(1.0), "00:00")

    assert (held.allows, held.reached) == (False, ())
    assert held.reason == (
        "budget nearly reached: $3.00 of $5.00 a day (budget.usd_per_day);"
        " 2 at work are expected to use $1.50 more, this one $1.00"
    )


def test_what_is_left_is_for_one_where_none_is_at_work() -> None:
    """Whatever is expected of it: a budget that is not reached is there to be used."""
    assert verdict(FIVE, a_day(4.99), Estimate(100.0), "00:00").allows


@given(policies(), days(), estimates())
def test_nothing_is_started_once_a_budget_is_reached(
    policy: BudgetPolicy, day: Outlook, coming: Estimate
) -> None:
    is_reached = bool(policy.usd_per_day and day.spent.usd >= policy.usd_per_day) or bool(
        policy.tokens_per_day and day.spent.tokens >= policy.tokens_per_day
    )
    found = verdict(policy, day, coming, "00:00")

    assert bool(found.reached) is is_reached
    assert not (is_reached and found.allows)


@given(policies(), days(), estimates(), money, tokens, st.integers(0, 5))
def test_who_has_spent_more_may_never_start_more(
    policy: BudgetPolicy, day: Outlook, coming: Estimate, usd: float, more: int, agents: int
) -> None:
    spent = replace(day.spent, usd=day.spent.usd + usd, tokens=day.spent.tokens + more)
    later = replace(day, spent=spent, at_work=day.at_work + agents)

    if verdict(policy, later, coming, "00:00").allows:
        assert verdict(policy, day, coming, "00:00").allows


@given(policies(), days(), estimates(), money, tokens)
def test_whose_agents_are_expected_to_use_more_may_never_start_more(
    policy: BudgetPolicy, day: Outlook, coming: Estimate, usd: float, more: int
) -> None:
    dearer = replace(day, rest_usd=day.rest_usd + usd, rest_tokens=day.rest_tokens + more)

    if verdict(policy, dearer, coming, "00:00").allows:
        assert verdict(policy, day, coming, "00:00").allows


@given(policies(), days(), estimates(), st.floats(0.01, 1000), st.integers(1, 10**9))
def test_a_higher_budget_never_starts_less(
    policy: BudgetPolicy, day: Outlook, coming: Estimate, usd: float, more: int
) -> None:
    higher = replace(
        policy,
        usd_per_day=policy.usd_per_day and policy.usd_per_day + usd,
        tokens_per_day=policy.tokens_per_day and policy.tokens_per_day + more,
    )

    if verdict(policy, day, coming, "00:00").allows:
        assert verdict(higher, day, coming, "00:00").allows


@given(st.floats(0.5, 20), st.floats(1, 100), st.integers(1, 30))
def test_slots_filled_at_once_stay_within_what_is_expected(
    each: float, limit: float, slots: int
) -> None:
    """All agents cost as expected: the day ends within its budget, or with one agent alone."""
    policy = BudgetPolicy(usd_per_day=limit)
    started = 0
    for _ in range(slots):
        day = outlook(
            Spent(), [AtWork("claude", Effort.S)] * started, lambda _b, _e: Estimate(each)
        )
        if not verdict(policy, day, Estimate(each), "00:00").allows:
            break
        started += 1

    assert started >= 1
    assert started == 1 or started * each <= limit * 1.000001


def test_an_agent_is_expected_to_use_what_the_latest_like_it_did() -> None:
    samples = [
        an_attempt(cost_usd=3.0, tokens=30),
        an_attempt(effort=Effort.L, cost_usd=50.0),
        an_attempt(cost_usd=None, tokens=None),
        an_attempt(cost_usd=1.0, tokens=10),
        an_attempt(route=Route("codex"), cost_usd=100.0),
        an_attempt(had_agent=False, cost_usd=100.0),
        an_attempt(ended_at=None, cost_usd=100.0),
    ]

    assert estimate(samples, "claude", Effort.S) == Estimate(2.0, 20, 2)


def test_of_another_effort_is_better_than_nothing() -> None:
    samples = [an_attempt(effort=Effort.L, cost_usd=4.0), an_attempt(effort=Effort.M, cost_usd=2.0)]

    assert estimate(samples, "claude", Effort.S).usd == 3.0


def test_only_the_latest_twenty_count() -> None:
    samples = [an_attempt(cost_usd=1.0)] * 20 + [an_attempt(cost_usd=99.0)] * 20

    assert estimate(samples, "claude", Effort.S) == Estimate(1.0, 1000, 20)


@pytest.mark.parametrize(
    ("samples", "cap", "expected"),
    [
        ([], 0.0, None),
        ([], 4.0, 4.0),
        ([an_attempt(cost_usd=9.0)], 4.0, 4.0),
        ([an_attempt(cost_usd=2.0)], 4.0, 2.0),
        ([an_attempt(cost_usd=None)], 0.0, None),
        ([an_attempt(cost_usd=-3.0)], 0.0, 0.0),
    ],
)
def test_no_more_is_expected_than_its_backend_allows(
    samples: list[Attempt], cap: float, expected: float | None
) -> None:
    assert estimate(samples, "claude", Effort.S, cap).usd == expected


def test_what_those_at_work_have_told_is_spent_and_the_rest_expected() -> None:
    at_work = [
        AtWork("claude", Effort.S, usd=0.5, tokens=100),
        AtWork("claude", Effort.S, usd=3.0, tokens=100),
        AtWork("claude", Effort.S),
        AtWork("aider", Effort.S),
    ]

    def expected(backend: str, _: Effort) -> Estimate:
        return Estimate(2.0, 1000) if backend == "claude" else Estimate()

    found = outlook(Spent(1.0, 10, agents=3, untold=2), at_work, expected)

    assert found == Outlook(Spent(4.5, 210, 3, 2), 4, rest_usd=3.5, rest_tokens=2800, unknown=1)


def test_what_was_spent_on_a_gap_counts_until_it_is_shipped_or_freed() -> None:
    attempts = [
        an_attempt("A-1", cost_usd=1.0),
        an_attempt("A-1", kind=OutcomeKind.SHIPPED, cost_usd=1.0),
        an_attempt("A-1", cost_usd=0.25),
        an_attempt("A-2", cost_usd=5.0, is_freed=True),
        an_attempt("A-2", cost_usd=None),
        an_attempt("A-3", cost_usd=-7.0),
        an_attempt("A-3", cost_usd=2.0),
    ]

    assert spent_on_gaps(attempts) == {"A-1": 0.25, "A-3": 2.0}


def test_a_gap_that_has_cost_as_much_as_it_may_is_held() -> None:
    policy = BudgetPolicy(usd_per_gap=2.0)

    assert over_budget(policy, 1.99) == ""
    assert over_budget(BudgetPolicy(), 1e9) == ""
    assert over_budget(policy, 2.0) == (
        "$2.00 of $2.00 spent on it (budget.usd_per_gap); retry it, or raise the budget and reload"
    )


def test_what_holds_a_gap_already_is_told_rather_than_its_budget() -> None:
    active = Hold(HoldKind.ACTIVE, "a-1")
    backlog = replace(a_backlog(a_gap("A-1"), a_gap("A-2")), holds={"A-1": active})

    held = held_back(backlog, {"A-1": "spent", "A-2": "spent"})

    assert held.holds == {"A-1": active, "A-2": Hold(HoldKind.BUDGET, "spent")}
    assert held_back(backlog, {}) is backlog


def test_what_ended_in_a_day_counts_for_it_and_who_did_not_tell_is_counted() -> None:
    began, ends = NOW, NOW + timedelta(days=1)
    attempts = [
        an_attempt(ended_at=began - timedelta(seconds=1)),
        an_attempt(ended_at=began),
        an_attempt(ended_at=began, cost_usd=None, tokens=None),
        an_attempt(ended_at=began, had_agent=False),
        an_attempt(ended_at=ends),
        an_attempt(ended_at=None),
    ]

    found = spent_between(used(attempts), began, ends)

    assert found == Spent(1.0, 1000, agents=2, untold=1, untold_tokens=1)


@pytest.mark.parametrize(
    ("now", "hours"),
    [
        ("2026-04-27T12:00:00+00:00", 24),
        ("2026-03-29T12:00:00+00:00", 23),
        ("2026-10-25T12:00:00+00:00", 25),
    ],
)
def test_a_day_is_that_of_the_wall(now: str, hours: int) -> None:
    began, ends = day_of(datetime.fromisoformat(now), ZoneInfo("Europe/Berlin"))

    assert ends - began == timedelta(hours=hours)
    assert began <= datetime.fromisoformat(now) < ends
    assert began.astimezone(ZoneInfo("Europe/Berlin")).hour == 0


@given(st.floats(0, 3e9))
def test_every_instant_lies_in_its_day(at_s: float) -> None:
    now = datetime.fromtimestamp(at_s, UTC)
    for name in ("UTC", "America/Sao_Paulo", "Pacific/Apia", "Australia/Lord_Howe"):
        began, ends = day_of(now, ZoneInfo(name))

        assert began <= now < ends


def test_a_day_is_told_with_who_did_not_tell() -> None:
    day = Outlook(Spent(3.2, 1_200_000, agents=7, untold=2), at_work=2, rest_usd=1.5)
    told = document(FIVE, day, NOW, verdict(FIVE, day, Estimate(), "00:00"))

    assert in_words(told) == (
        "$3.20 of $5.00, 1,200,000 tokens, 2 of 7 did not tell their cost,"
        " $1.50 more expected of 2 at work"
    )
    assert (told["usd_per_day"], told["usd_per_gap"], told["held"]) == (5.0, None, None)


def test_a_document_of_another_version_is_told_as_far_as_it_goes() -> None:
    assert in_words({}) == "?"
