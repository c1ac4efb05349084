"""Going on with a session: when it may be, what its agent is told, what follows (X6)."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from chump_orchestrator.core.brakes import Free, Park, Retry
from chump_orchestrator.core.causes import Cause
from chump_orchestrator.core.complaints import Complaint, ComplaintKind
from chump_orchestrator.core.dispatch import Resumed, Workspace
from chump_orchestrator.core.outcome import Exit, Outcome, OutcomeKind, PullRequest, PullState
from chump_orchestrator.core.records import DispatchState, Record
from chump_orchestrator.core.resuming import (
    consequence_for,
    is_resumable,
    last_at_work,
    made_progress,
    objection,
    offer,
    resumption_brief,
    taking_over,
    watched_since,
    what_happened,
)
from chump_orchestrator.core.testimony import Report
from tests.builders import NOW, a_dispatch, a_gap, a_pull

PLACE = Workspace("/w/infra-1", "claude/infra-1", "b" * 40)
BEFORE = Resumed("infra-1-before", "s-1", NOW - timedelta(hours=3), 412, "c" * 40, 1)


def a_record(**fields: Any) -> Record:
    """Return a dispatch that an operator stopped, with all that it takes to go on."""
    defaults: dict[str, Any] = {
        "dispatch": a_dispatch(),
        "state": DispatchState.DONE,
        "workspace": PLACE,
        "launched_at": NOW,
        "exit": Exit(signal=15, stopped_by="operator"),
        "outcome": Outcome(OutcomeKind.CANCELLED, "stopped by an operator"),
        "report": Report(session="s-1"),
    }
    return Record(**(defaults | fields))


def test_what_was_stopped_can_be_gone_on_with() -> None:
    assert objection("INFRA-1", [a_record()], is_shipped=False) == ""
    assert is_resumable(a_record())


@pytest.mark.parametrize(
    ("records", "is_shipped", "why"),
    [
        ([], False, "INFRA-1 has had no agent yet"),
        ([a_record(launched_at=None)], False, "INFRA-1 has had no agent yet"),
        ([a_record(state=DispatchState.RUNNING)], False, "has a dispatch under way"),
        ([a_record(launched_at=None, state=DispatchState.PLANNED), a_record()], False, "under way"),
        ([a_record()], True, "INFRA-1 was shipped"),
        ([a_record(outcome=Outcome(OutcomeKind.SHIPPED))], False, "INFRA-1 was shipped"),
        ([a_record(report=Report())], False, "no session of dispatch"),
        ([a_record(report=Report(session="--version"))], False, "no session of dispatch"),
        ([a_record(report=Report(session="a b"))], False, "no session of dispatch"),
        ([a_record(report=Report(session="s" * 200))], False, "no session of dispatch"),
        ([a_record(workspace=None)], False, "no worktree of dispatch"),
        ([a_record(exit=Exit(lost="gone", clean=False))], False, "could not be proved"),
    ],
)
def test_why_a_session_cannot_be_gone_on_with(
    records: list[Record], is_shipped: bool, why: str
) -> None:
    assert why in objection("INFRA-1", records, is_shipped=is_shipped)


def test_a_launch_that_failed_does_not_hide_the_session_before_it() -> None:
    failed = a_record(dispatch=a_dispatch("infra-1-later"), launched_at=None, exit=None)

    assert last_at_work([failed, a_record()]) == a_record()
    assert objection("INFRA-1", [failed, a_record()], is_shipped=False) == ""


@pytest.mark.parametrize(
    "without",
    [
        {"exit": None},
        {"exit": Exit(spawn_error="no such program")},
        {"exit": Exit(lost="gone", clean=False)},
        {"workspace": None},
        {"report": Report()},
        {"report": Report(session="-x")},
    ],
)
def test_what_lacks_something_leaves_nothing_to_go_on_with(without: dict[str, Any]) -> None:
    assert not is_resumable(a_record(**without))


def test_the_first_launch_of_a_row_says_whose_requests_are() -> None:
    """Behaviour P6."""
    first = a_record(pull=a_pull(PullState.OPEN, head="d" * 40))
    second = a_record(
        dispatch=a_dispatch("infra-1-later", resumed=taking_over(first)),
        launched_at=NOW + timedelta(hours=1),
        pull=a_pull(PullState.CLOSED, head="e" * 40),
    )

    assert taking_over(first) == Resumed(first.dispatch.id, "s-1", NOW, 412, "d" * 40)
    assert taking_over(second, times=2) == Resumed("infra-1-later", "s-1", NOW, None, "", 2)
    assert watched_since(first) == watched_since(second) == NOW
    assert second.dispatch.session == "s-1"


@pytest.mark.parametrize(
    ("pull", "made"),
    [
        (None, False),
        (a_pull(PullState.NONE), False),
        (a_pull(PullState.OPEN, head="c" * 40), False),
        (a_pull(PullState.OPEN, head="d" * 40), True),
        (a_pull(PullState.MERGED, head="c" * 40), True),
    ],
)
def test_x2_what_was_pushed_before_is_no_progress_of_a_session(pull: Any, made: bool) -> None:
    record = a_record(dispatch=a_dispatch(resumed=BEFORE), pull=pull)

    assert made_progress(record) is made
    assert made_progress(replace(record, dispatch=a_dispatch())) is (
        pull is not None and pull.state is not PullState.NONE
    )


@pytest.mark.parametrize("what", [Retry(timedelta(minutes=1), "again"), Free(), None])
def test_what_was_gone_on_with_is_parked_and_not_begun_anew(what: Any) -> None:
    resumed, first = a_dispatch(resumed=BEFORE), a_dispatch()
    outcome = Outcome(OutcomeKind.KILLED, "exit code 1", Cause.NETWORK)

    assert consequence_for(resumed, what, outcome) == Park("killed (exit code 1)")
    assert consequence_for(first, what, outcome) == what
    assert consequence_for(resumed, Free(), Outcome(OutcomeKind.SHIPPED)) == Free()
    assert consequence_for(resumed, Park("so"), outcome) == Park("so")


def test_a_session_that_is_not_there_is_not_offered_again() -> None:
    killed = Outcome(OutcomeKind.KILLED, "exit code 1", Cause.SESSION)

    assert "--resume" not in offer("INFRA-1", killed)
    assert "`retry INFRA-1 --resume`" in offer("INFRA-1", Outcome(OutcomeKind.CANCELLED))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "an operator stopped you"),
        ({"exit": Exit(signal=9, stopped_by="deadline")}, "stopped at the deadline"),
        ({"exit": Exit(code=0, stopped_by="pull-overtime")}, "open for long enough"),
        ({"exit": Exit(code=0, stopped_by="teardown")}, "with the orchestrator"),
        ({"exit": Exit(code=0, stopped_by="host")}, "with the machine"),
        ({"exit": Exit(lost="its shim is gone")}, "you were cut off"),
        (
            {"exit": Exit(code=7), "outcome": Outcome(OutcomeKind.KILLED, "exit code\n7")},
            "your last run ended (exit code 7)",
        ),
        ({"exit": Exit(code=7), "outcome": None}, "your last run ended"),
        (
            {"outcome": Outcome(OutcomeKind.CI_FAILED, "pull request 412 has failing checks")},
            "pull request 412 has failing checks",
        ),
    ],
)
def test_an_agent_is_told_how_its_last_run_ended(fields: dict[str, Any], said: str) -> None:
    assert said in what_happened(a_record(**fields))


def test_without_a_request_the_work_is_to_be_finished_and_shipped() -> None:
    brief = resumption_brief(a_gap("INFRA-1"), PLACE, a_record())

    assert "working on gap INFRA-1" in brief
    assert "claude/infra-1" in brief
    assert "ship it as you were told" in brief
    assert "complaints" not in brief
    assert not brief.startswith(("/", "-"))


@pytest.mark.parametrize("pull", [None, a_pull(PullState.OPEN)])
def test_whose_work_the_daemon_ships_is_told_to_commit_alone(pull: PullRequest | None) -> None:
    """Behaviour P9."""
    brief = resumption_brief(a_gap("INFRA-1"), PLACE, a_record(pull=pull), is_shipped=True)

    assert "commit all of it on branch claude/infra-1" in brief
    assert "Do not push" in brief
    assert "git push" not in brief
    assert "number of the pull request" not in brief


def test_with_a_request_what_is_held_against_it_is_told_and_no_other_is_to_be_opened() -> None:
    record = a_record(pull=a_pull(PullState.OPEN))
    complaints = (
        Complaint(ComplaintKind.CHECK, "unit tests", "E  assert 1 == 2"),
        Complaint(ComplaintKind.COMMENT, "mallory", is_withheld=True),
    )

    brief = resumption_brief(a_gap("INFRA-1"), PLACE, record, complaints)

    assert "pull request 412 is open" in brief
    assert "E  assert 1 == 2" in brief
    assert "1 remark is left out, by mallory" in brief
    assert "git push origin HEAD:refs/heads/claude/infra-1" in brief
    assert "Open no other pull request" in brief
