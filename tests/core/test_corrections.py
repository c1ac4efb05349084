"""Which outcomes a later merge may put right, and how often that is asked (behaviour P5)."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chump_orchestrator.core.causes import Cause
from chump_orchestrator.core.corrections import (
    ASKED_FOR,
    LATEST,
    SOONEST,
    correction,
    latest_of_branches,
    may_ship_yet,
    rest_of,
    watch_of,
)
from chump_orchestrator.core.dispatch import Workspace
from chump_orchestrator.core.outcome import Outcome, OutcomeKind, PullRequest, PullState
from chump_orchestrator.core.records import DispatchState, Record
from tests.builders import NOW, a_dispatch, a_pull

HOUR = timedelta(hours=1)
SETTLED = Record(
    a_dispatch(),
    DispatchState.DONE,
    workspace=Workspace("/w/infra-1", "claude/infra-1", "b" * 40),
    launched_at=NOW,
    pull=a_pull(PullState.OPEN),
    outcome=Outcome(OutcomeKind.CI_FAILED, "red"),
    ended_at=NOW + HOUR,
)


def ended(kind: OutcomeKind, pull: PullRequest | None, cause: Cause | None = None) -> Record:
    return replace(SETTLED, outcome=Outcome(kind, "so it was", cause), pull=pull)


@pytest.mark.parametrize(
    ("record", "may_be"),
    [
        (SETTLED, True),
        (ended(OutcomeKind.STALLED, a_pull(PullState.OPEN)), True),
        (ended(OutcomeKind.CI_FAILED, a_pull(PullState.CLOSED)), True),
        (ended(OutcomeKind.CANCELLED, a_pull(PullState.OPEN)), True),
        (ended(OutcomeKind.KILLED, a_pull(PullState.OPEN), Cause.DEADLINE), True),
        (ended(OutcomeKind.STALLED, None, Cause.NETWORK), True),
        (ended(OutcomeKind.STALLED, a_pull(PullState.NONE), Cause.NO_PULL), False),
        (ended(OutcomeKind.KILLED, None, Cause.EXIT_CODE), False),
        (ended(OutcomeKind.SHIPPED, a_pull(PullState.MERGED)), False),
        (ended(OutcomeKind.LOST, a_pull(PullState.OPEN)), False),
        (replace(SETTLED, corrected_at=NOW), False),
        (replace(SETTLED, workspace=None), False),
        (replace(SETTLED, outcome=None, ended_at=None), False),
    ],
)
def test_what_had_a_request_or_a_silent_forge_may_ship_yet(record: Record, may_be: bool) -> None:
    assert may_ship_yet(record, NOW + 2 * HOUR) is may_be


def test_after_thirty_days_nobody_asks_any_more() -> None:
    assert may_ship_yet(SETTLED, NOW + HOUR + ASKED_FOR - timedelta(seconds=1))
    assert not may_ship_yet(SETTLED, NOW + HOUR + ASKED_FOR)


@given(st.timedeltas(timedelta(0), ASKED_FOR), st.timedeltas(timedelta(0), ASKED_FOR))
def test_the_older_the_rarer(one: timedelta, another: timedelta) -> None:
    younger, older = sorted((one, another))

    assert SOONEST <= rest_of(younger) <= rest_of(older) <= LATEST


def test_in_thirty_days_one_request_is_asked_about_some_three_hundred_times() -> None:
    age, times = timedelta(0), 0
    while age < ASKED_FOR:
        age += rest_of(age)
        times += 1

    assert times < 300


def test_the_question_is_the_one_that_was_put_before() -> None:
    watch = watch_of(SETTLED)

    assert watch is not None
    assert (watch.branch, watch.base, watch.since) == ("claude/infra-1", "b" * 40, NOW)
    assert watch_of(replace(SETTLED, workspace=None)) is None


def test_of_those_that_share_a_branch_the_last_one_is_asked_about() -> None:
    later = replace(SETTLED, dispatch=a_dispatch("infra-1-b"))

    assert latest_of_branches([SETTLED, later]) == {"claude/infra-1": later}


def test_a_correction_says_what_it_corrects_and_keeps_the_time_of_the_end() -> None:
    """When it ended, and how long it took, is by what the journal's rows are found."""
    found = correction(
        SETTLED, a_pull(PullState.MERGED, number=None), NOW + 9 * HOUR, task_class="x", ships=True
    )

    assert found.outcome == Outcome(
        OutcomeKind.SHIPPED, "branch claude/infra-1 merged, after it had counted as ci_failed"
    )
    reflection = found.reflection
    assert (reflection.ended_at, reflection.duration) == (NOW + HOUR, HOUR)
    assert (reflection.outcome, reflection.cause) == (OutcomeKind.SHIPPED, None)
