"""Names, depth and deadlines of an attempt (behaviour D1, D4, D6, P1, P2)."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chump_orchestrator.core.dispatch import (
    DEFAULT_SOFT,
    DISPATCH_ID_PATTERN,
    DeadlinePolicy,
    Deadlines,
    Names,
    depth_objection,
    dispatch_id,
    names,
)
from chump_orchestrator.core.gap import Effort
from tests.builders import NOW, a_dispatch, a_gap

M = timedelta(minutes=1)


@pytest.mark.parametrize(
    ("effort", "minutes"),
    [("xs", 20), ("s", 20), ("m", 60), ("l", 180), ("xl", 360), ("unknown", 60)],
)
def test_the_soft_deadline_goes_by_effort(effort: str, minutes: int) -> None:
    """Behaviour P1."""
    assert DeadlinePolicy().of(a_gap(effort=Effort(effort))) == Deadlines(soft=minutes * M)
    assert len(DEFAULT_SOFT) == 6


def test_the_session_of_a_dispatch_is_its_own_and_always_the_same() -> None:
    """It is stored, and daemons of other versions look for it: the value never changes."""
    one, other = a_dispatch("infra-1-260427120000-abcdef"), a_dispatch("infra-1-260427120000-x")

    assert one.session == "02a97a53-2afd-5511-a93e-4b60e0c69011"
    assert uuid.UUID(one.session).version == 5
    assert other.session != one.session


def test_a_gaps_own_deadline_outranks_its_efforts() -> None:
    """Behaviour P1."""
    gap = a_gap(effort=Effort.XS, deadline=90 * M)

    assert DeadlinePolicy().of(gap).soft == 90 * M


def test_every_deadline_can_be_set() -> None:
    """Behaviour P1 to P5, P8, C5."""
    policy = DeadlinePolicy({Effort.S: M}, 2 * M, 3 * M, 4 * M, 5 * M, 6 * M)

    assert policy.of(a_gap(effort=Effort.S)) == Deadlines(M, 2 * M, 3 * M, 4 * M, 5 * M, 6 * M)
    assert policy.of(a_gap(effort=Effort.L)).soft == 180 * M


def test_the_ladder_has_its_steps_at_two_and_three_soft_deadlines() -> None:
    """Behaviour P2, P3; the defaults of P2, P5 and P8."""
    found = Deadlines(soft=20 * M)

    assert (found.hard, found.last) == (40 * M, 60 * M)
    assert (found.grace, found.silent, found.pull, found.ci_grace, found.look_interval) == (
        timedelta(seconds=30),
        5 * M,
        24 * 60 * M,
        30 * M,
        timedelta(seconds=30),
    )


@pytest.mark.parametrize(
    ("taken", "folder"),
    [
        (set(), "comp-005a-fe"),
        ({"claude/comp-005a-f", "comp-005a", "x/comp-005a-fe"}, "comp-005a-fe"),
        ({"claude/comp-005a-fe"}, "comp-005a-fe-r2"),
        ({"comp-005a-fe"}, "comp-005a-fe-r2"),
        ({"claude/comp-005a-fe", "comp-005a-fe-r2", "claude/comp-005a-fe-r3"}, "comp-005a-fe-r4"),
        ({"comp-005a-fe", "comp-005a-fe-r3"}, "comp-005a-fe-r2"),
        ({"comp-005a-fe-r2"}, "comp-005a-fe"),
        ({"claude/comp-005a-fe/part"}, "comp-005a-fe-r2"),
        ({"comp-005a-fe/part"}, "comp-005a-fe"),
        ({"others/comp-005a-fe/part"}, "comp-005a-fe"),
    ],
)
def test_names_have_the_smallest_number_that_is_free(taken: set[str], folder: str) -> None:
    """Behaviour D1."""
    gap = a_gap("COMP_005a-fe")

    assert names(gap, taken, prefix="claude/") == Names("claude/" + folder, folder)


def test_prefix_may_be_anything_or_nothing() -> None:
    """Behaviour D1."""
    assert names(a_gap("A-1"), {"bot-a-1"}, prefix="bot-") == Names("bot-a-1-r2", "a-1-r2")
    assert names(a_gap("A-1"), {"a-1"}, prefix="") == Names("a-1-r2", "a-1-r2")


@given(st.frozensets(st.integers(1, 12)), st.frozensets(st.integers(1, 12)))
def test_the_number_is_the_first_that_neither_branch_nor_folder_has(
    branches: frozenset[int], folders: frozenset[int]
) -> None:
    """Behaviour D1."""

    def named(number: int) -> str:
        return "a-1" if number == 1 else f"a-1-r{number}"

    taken = {f"claude/{named(n)}" for n in branches} | {named(n) for n in folders}

    free = min(n for n in range(1, 14) if n not in branches | folders)
    assert names(a_gap("A-1"), taken, prefix="claude/").folder == named(free)


@pytest.mark.parametrize("gap_id", ["A-1", "INFRA-AB-TOOL-CALL-COUNTER", "A" + "-1" * 31])
def test_a_dispatch_id_can_be_a_file_name(gap_id: str) -> None:
    """Behaviour D4."""
    found = dispatch_id(a_gap(gap_id), NOW, "0badcafe42")

    assert DISPATCH_ID_PATTERN.fullmatch(found)
    assert "--" not in found


def test_a_dispatch_id_tells_gap_and_moment() -> None:
    """Behaviour D4: in UTC, wherever the daemon runs."""
    east = NOW.astimezone(timezone(timedelta(hours=9)))

    found = {dispatch_id(a_gap("COG_9-b"), moment, "abc") for moment in (NOW, east)}

    assert found == {"cog-9-b-260427120000-abc"}
    assert datetime.fromisoformat("2026-04-27T12:00:00Z") == NOW


@pytest.mark.parametrize("depth", [None, "", " ", "0", "00"])
def test_an_orchestrator_of_no_depth_may_dispatch(depth: str | None) -> None:
    """Behaviour D6."""
    assert depth_objection(depth) is None


@pytest.mark.parametrize(
    ("depth", "shown"),
    [("1", "1"), ("2", "2"), (" 1\n", "1"), ("yes", "yes"), ("9" * 99, "9" * 80)],
)
def test_a_dispatched_orchestrator_may_not(depth: str, shown: str) -> None:
    """Behaviour D6: says why, and what to do."""
    assert depth_objection(depth) == (
        f"CHUMP_DISPATCH_DEPTH is '{shown}': this process was itself dispatched by an orchestrator"
        " and must not dispatch further; unset the variable if that is not so"
    )
