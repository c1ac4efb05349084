"""The decisions of the core, by example; each names the rule that it stands for."""

from __future__ import annotations

from datetime import timedelta

import pytest

from chump_orchestrator.core.backlog import Hold, HoldKind
from chump_orchestrator.core.causes import Cause, cause_in
from chump_orchestrator.core.dispatch import Deadlines, depth_objection, names
from chump_orchestrator.core.gap import Effort, Gap, Place, Priority, Rejection, read_gap
from chump_orchestrator.core.outcome import (
    Exit,
    Observation,
    Outcome,
    OutcomeKind,
    PullRequest,
    PullState,
    Settle,
    Stop,
    StopReason,
    Verdict,
    Wait,
    judge,
)
from chump_orchestrator.core.picker import PickPolicy, Refusal, choose
from chump_orchestrator.core.tail import TAIL_LINES, Tail
from tests.builders import NOW, a_backlog, a_gap

M = timedelta(minutes=1)
HOUR = Deadlines(soft=60 * M)
HERE = Place("docs/gaps.yaml", 3, 5)


def test_k2_priority_then_effort_then_place() -> None:
    late = a_gap("A-1", priority=Priority.P2, effort=Effort.XS)
    small = a_gap("A-2", effort=Effort.XS)
    first = a_gap("A-3", priority=Priority.P0, effort=Effort.L)

    choice = choose(a_backlog(late, small, first), 2, PickPolicy())

    assert [gap.id for gap in choice.picked] == ["A-3", "A-2"]
    assert choice.reasons() == (Refusal("A-1", "no slot, place 3"),)


def test_k1_an_unmet_dependency_and_a_hold_are_reasons() -> None:
    waiting = a_gap("A-1", depends_on=("A-9",))
    held = a_gap("A-2")
    holds = {"A-2": Hold(HoldKind.PARKED, "it failed")}

    choice = choose(a_backlog(waiting, held, holds=holds), 5, PickPolicy())

    assert choice.picked == ()
    assert choice.reasons() == (
        Refusal("A-1", "waits for A-9, which is nowhere in the backlog"),
        Refusal("A-2", "parked: it failed"),
    )


def test_b3_cycles_and_colliding_slugs_are_left_out() -> None:
    backlog = a_backlog(
        a_gap("A-1", depends_on=("A-2",)),
        a_gap("A-2", depends_on=("A-1",)),
        a_gap("B-1"),
        a_gap("B_1"),
        a_gap("C-1"),
    )

    assert [gap.id for gap in backlog.gaps] == ["C-1"]
    assert {entry.id for entry in backlog.rejected} == {"A-1", "A-2", "B-1", "B_1"}


@pytest.mark.parametrize("gap_id", ["", "../x-1", "INFRA", "a-b;c", "é-1", "x-" + "y" * 70])
def test_b3_a_bad_id_is_rejected_with_its_place(gap_id: str) -> None:
    found = read_gap({"id": gap_id, "status": "open"}, order=0, place=HERE)

    assert isinstance(found, Rejection)
    assert found.place == HERE


def test_b2_enumerations_ignore_case_and_blanks() -> None:
    entry = {"id": "COG-009b", "priority": " p1", "effort": "XS ", "depends_on": "A-1"}

    found = read_gap(entry, order=0, place=HERE)

    assert isinstance(found, Gap)
    assert (found.priority, found.effort) == (Priority.P1, Effort.XS)
    assert found.depends_on == ("A-1",)


def test_d1_the_smallest_free_number() -> None:
    found = names(a_gap("COMP_5-a"), {"claude/comp-5-a", "comp-5-a-r2"}, prefix="claude/")

    assert (found.branch, found.folder) == ("claude/comp-5-a-r3", "comp-5-a-r3")


@pytest.mark.parametrize(("depth", "refused"), [(None, False), ("0", False), ("1", True)])
def test_d6_depth(depth: str | None, refused: bool) -> None:
    assert (depth_objection(depth) is not None) is refused


def _pull(state: PullState) -> PullRequest:
    return PullRequest("claude/a-1", state, NOW, number=7)


@pytest.mark.parametrize(
    ("seen", "verdict"),
    [
        (Observation(59 * M), Wait(recheck=M)),
        (Observation(121 * M, looked=M / 2), Stop(StopReason.DEADLINE)),
        (Observation(181 * M), Stop(StopReason.DEADLINE)),
        (Observation(M, stop_asked=StopReason.OPERATOR), Stop(StopReason.OPERATOR)),
        (
            Observation(M, Exit(code=1), M, _pull(PullState.MERGED), M),
            Settle(Outcome(OutcomeKind.SHIPPED, "pull request 7 merged")),
        ),
        (
            Observation(M, Exit(code=7), M, _pull(PullState.NONE), M / 2),
            Settle(Outcome(OutcomeKind.KILLED, "exit code 7", Cause.EXIT_CODE)),
        ),
    ],
)
def test_p2_to_p4_the_ladder(seen: Observation, verdict: Verdict) -> None:
    assert judge(seen, HOUR) == verdict


def test_p3_nobody_is_stopped_at_the_hard_deadline_while_the_forge_is_silent() -> None:
    verdict = judge(Observation(121 * M, looked=10 * M), HOUR)

    assert isinstance(verdict, Wait)
    assert verdict.look


def test_t1_the_last_telling_lines_stay() -> None:
    tail = Tail()
    for number in range(100):
        tail.feed(f"error {number}\nfine\n".encode())

    assert tail.lines() == tuple(f"error {n}" for n in range(100 - TAIL_LINES, 100))


def test_o2_a_bare_number_is_no_exhausted_account() -> None:
    assert cause_in("402 lines changed") is None
    assert cause_in("HTTP 402 from the provider") is Cause.CREDIT_EXHAUSTED
