"""What a stretch of time came to (behaviour C10)."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from chump_orchestrator.core.causes import Cause
from chump_orchestrator.core.outcome import Exit, Outcome, OutcomeKind, PullState
from chump_orchestrator.core.records import DispatchState, Record
from chump_orchestrator.core.report import Report, Spent, report
from chump_orchestrator.core.routing import Route
from tests.builders import NOW, a_dispatch, a_gap, a_pull

HOUR = timedelta(hours=1)
SINCE = NOW - 12 * HOUR

SHIPPED = Outcome(OutcomeKind.SHIPPED, "pull request 412 merged")
KILLED = Outcome(OutcomeKind.KILLED, "exit code 7", Cause.EXIT_CODE)
STALLED = Outcome(OutcomeKind.STALLED, "pull request 412 open for a day without a merge")
CANCELLED = Outcome(OutcomeKind.CANCELLED, "stopped by an operator")


def begun(gap: str, hours_ago: float, *, attempt: int = 1, backend: str = "claude") -> Record:
    """Return a dispatch whose agent was launched so many hours before `NOW`, and runs."""
    at = NOW - hours_ago * HOUR
    dispatch = a_dispatch(
        f"{gap.lower()}-{attempt}-{hours_ago}",
        gap=a_gap(gap),
        attempt=attempt,
        route=Route(backend),
        created_at=at,
    )
    return Record(dispatch, DispatchState.RUNNING, pid=7, launched_at=at)


def over(record: Record, hours: float, outcome: Outcome = SHIPPED, **fields: Any) -> Record:
    """Return a dispatch that ended so many hours after its launch, its agent with it."""
    assert record.launched_at is not None
    end = record.launched_at + hours * HOUR
    return replace(
        record,
        state=DispatchState.DONE,
        exit=Exit(code=0, active=hours * HOUR),
        exited_at=end,
        outcome=outcome,
        ended_at=end,
        **fields,
    )


def of(*records: Record, since: datetime = SINCE) -> Report:
    return report(records, since, NOW)


def gaps(records: tuple[Record, ...]) -> list[str]:
    return [record.dispatch.gap.id for record in records]


def test_nothing_comes_to_nothing() -> None:
    assert of() == Report(SINCE, NOW)


def test_each_gap_is_told_once_by_what_became_of_it_in_the_end() -> None:
    told = of(
        over(begun("A-1", 9), 1, KILLED),
        over(begun("A-2", 8), 1, SHIPPED),
        over(begun("A-1", 7, attempt=2), 1, SHIPPED),
        over(begun("A-3", 6), 1, KILLED),
        over(begun("A-3", 5, attempt=2), 1, STALLED),
        over(begun("A-4", 4), 1, CANCELLED),
    )

    assert gaps(told.shipped) == ["A-1", "A-2"]
    assert [(r.dispatch.gap.id, r.outcome) for r in told.failed] == [("A-3", STALLED)]
    assert gaps(told.other) == ["A-4"]
    assert told.attempts == {"A-1": 2, "A-2": 1, "A-3": 2, "A-4": 1}


def test_a_gap_that_is_tried_again_has_not_failed_yet() -> None:
    told = of(over(begun("A-1", 3), 1, KILLED), begun("A-1", 1, attempt=2))

    assert (told.failed, gaps(told.running)) == ((), ["A-1"])
    assert told.spent.failed == 1


@pytest.mark.parametrize(("ended", "is_told"), [(-12.1, False), (-12, True), (0, True), (1, False)])
def test_a_dispatch_belongs_to_the_time_in_which_it_ended(ended: float, is_told: bool) -> None:
    one = over(begun("A-1", 20), 20 + ended)

    assert bool(of(one).shipped) is is_told


def test_one_that_was_merged_long_after_its_agent_had_ended_is_the_night_s() -> None:
    late = replace(over(begun("A-1", 30), 1), ended_at=NOW - HOUR)

    told = of(late)

    assert gaps(told.shipped) == ["A-1"]
    assert (told.spent.dispatches, told.spent.work) == (1, timedelta(0))


def test_only_work_within_the_time_is_counted_and_no_sleep_of_the_machine() -> None:
    slept = over(begun("A-2", 10), 5)
    assert slept.exit is not None
    told = of(
        over(begun("A-1", 14), 5),  # 3 of them within
        replace(slept, exit=replace(slept.exit, active=HOUR)),
        begun("A-3", 2),
    )

    assert told.spent.work == (3 + 1 + 2) * HOUR


def test_an_agent_that_never_began_did_no_work() -> None:
    planned = replace(begun("A-1", 1), state=DispatchState.PLANNED, launched_at=None)
    aborted = replace(planned, state=DispatchState.ABORTED, ended_at=NOW)

    assert of(planned).spent == Spent()
    assert of(aborted).spent == Spent()
    assert gaps(of(planned).running) == ["A-1"]


def test_costs_are_those_that_somebody_reported() -> None:
    told = of(
        over(begun("A-1", 3), 1, cost_usd=0.5, tokens=100),
        over(begun("A-2", 3), 1, KILLED, cost_usd=0.25),
        over(begun("A-3", 3, backend="codex"), 1),
    )

    assert told.spent == Spent(3, 2, 1, 3 * HOUR, 0.75, 100)
    assert told.backends == {
        "claude": Spent(2, 1, 1, 2 * HOUR, 0.75, 100),
        "codex": Spent(1, 1, 0, HOUR, None, None),
    }


def test_requests_that_wait_for_a_person_are_told_also_when_nobody_waits_for_them() -> None:
    told = of(
        replace(begun("A-1", 2), state=DispatchState.EXITED, exited_at=NOW, pull=a_pull()),
        over(begun("A-2", 30), 25, STALLED, pull=a_pull()),
        over(begun("A-3", 3), 1, SHIPPED, pull=a_pull(PullState.MERGED)),
        over(begun("A-4", 90), 25, STALLED, pull=a_pull()),
    )

    assert gaps(told.open_pulls) == ["A-1", "A-2"]
    assert gaps(told.failed) == ["A-2"]


def test_an_agent_whose_end_nobody_wrote_down_is_told_apart() -> None:
    unseen = replace(begun("A-1", 2), state=DispatchState.EXITED)
    seen = replace(begun("A-2", 2), state=DispatchState.EXITED, exited_at=NOW)

    told = of(unseen, seen)

    assert (gaps(told.running), gaps(told.ended_unseen)) == ([], ["A-1"])


def test_a_correction_is_news_of_the_day_it_is_heard_of_and_its_costs_are_of_its_end() -> None:
    """Behaviour P5."""
    merged = replace(
        over(begun("A-1", 40), 1, cost_usd=2.0, tokens=7),
        corrected_at=NOW - HOUR,
        corrected_from=OutcomeKind.CI_FAILED,
    )
    failed = over(begun("B-1", 3), 1, KILLED, cost_usd=1.0)

    night, days = of(merged, failed), of(merged, failed, since=NOW - 48 * HOUR)

    assert (gaps(night.shipped), gaps(night.failed)) == (["A-1"], ["B-1"])
    assert (night.spent.shipped, night.spent.failed, night.spent.dispatches) == (1, 1, 1)
    assert night.spent.cost_usd == 1.0
    assert (gaps(days.shipped), days.spent.dispatches, days.spent.cost_usd) == (["A-1"], 2, 3.0)


def test_the_latest_news_come_first_corrections_among_them() -> None:
    old = replace(over(begun("A-1", 40), 1), corrected_at=NOW - HOUR)
    fresh = over(begun("B-1", 3), 1)

    assert gaps(of(fresh, old).shipped) == ["A-1", "B-1"]
