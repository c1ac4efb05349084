"""What is written down of a dispatch (behaviour R2 to R5)."""

from __future__ import annotations

from datetime import timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chump_orchestrator.core.causes import Cause
from chump_orchestrator.core.gap import Effort, Priority
from chump_orchestrator.core.outcome import OutcomeKind
from chump_orchestrator.core.reflection import (
    ReflectionRow,
    RoutingRow,
    notes,
    reflection_row,
    routing_row,
    target_row,
)
from tests.builders import NOW, a_reflection


def test_the_row_of_a_failure() -> None:
    """Behaviour R2."""
    failed = a_reflection(
        outcome=OutcomeKind.KILLED,
        cause=Cause.DEADLINE,
        pull_number=None,
        duration=timedelta(seconds=2400.9),
        tail=("WARN a", "ERROR b"),
    )

    assert reflection_row(failed) == ReflectionRow(
        episode_id="infra-1-260427120000-abcdef",
        task_id="INFRA-1",
        intended_goal="ship gap INFRA-1",
        observed_outcome="outcome=killed duration_s=2400 pr=none",
        outcome_class="failure",
        error_pattern="orchestrator_dispatch",
        hypothesis="backend=claude cause:deadline\nWARN a\nERROR b",
        surprisal_at_reflect=None,
        confidence_at_reflect=None,
    )


@pytest.mark.parametrize(
    ("outcome", "cause", "first"),
    [
        (OutcomeKind.SHIPPED, None, "backend=claude"),
        (OutcomeKind.SHIPPED, Cause.AUTH, "backend=claude"),
        (OutcomeKind.RACE_ABANDONED, Cause.UNKNOWN, "backend=claude"),
        (OutcomeKind.CANCELLED, Cause.UNKNOWN, "backend=claude"),
        (OutcomeKind.STALLED, Cause.NO_PULL, "backend=claude cause:no-pr"),
        (OutcomeKind.CI_FAILED, None, "backend=claude cause:unknown"),
    ],
)
def test_notes_name_the_cause_of_failures_only(
    outcome: OutcomeKind, cause: Cause | None, first: str
) -> None:
    """Behaviour R2, O2."""
    reflection = a_reflection(outcome=outcome, cause=cause, tail=("FAIL x",))

    assert notes(reflection) == f"{first}\nFAIL x"


@pytest.mark.parametrize(
    ("outcome", "priority"),
    [
        ("killed", "high"),
        ("ci_failed", "high"),
        ("lost", "high"),
        ("stalled", "medium"),
        ("spawn_failed", "medium"),
        ("shipped", "low"),
        ("race_abandoned", "low"),
        ("cancelled", "low"),
    ],
)
def test_the_outcome_decides_the_priority_of_the_target(outcome: str, priority: str) -> None:
    """Behaviour R3."""
    row = target_row(a_reflection(outcome=OutcomeKind(outcome), gap="COMP-005a-fe"))

    assert (row.priority, row.scope) == (priority, "comp")


@given(st.lists(st.text(), max_size=3), st.text(min_size=1, max_size=9))
def test_a_directive_is_one_line_whatever_the_agent_wrote(tail: list[str], backend: str) -> None:
    """Behaviour R3."""
    directive = target_row(a_reflection(tail=tuple(tail), backend=backend)).directive

    assert len(directive.splitlines()) == 1
    assert directive.startswith("dispatched gap=INFRA-1 effort=s domain=infra outcome=shipped ")


def test_the_routing_row() -> None:
    """Behaviour R5: `recorded_at` in UTC, whole seconds."""
    reflection = a_reflection(
        gap="COG-9",
        task_class="cognition",
        priority=Priority.P0,
        effort=Effort.XS,
        outcome=OutcomeKind.STALLED,
        pull_number=None,
        backend="chump-local",
        model="qwen",
        provider_pfx="TOGETHER",
        cost_usd=0.25,
        ended_at=NOW.astimezone(timezone(timedelta(hours=-5))) + timedelta(milliseconds=900),
    )

    assert routing_row(reflection) == RoutingRow(
        recorded_at="2026-04-27T12:00:00Z",
        task_class="cognition",
        priority="P0",
        effort="xs",
        backend="chump-local",
        model="qwen",
        provider_pfx="TOGETHER",
        gap_id="COG-9",
        outcome="stalled",
        pr_number=None,
        duration_s=1800,
        cost_usd=0.25,
    )


def test_what_is_not_known_is_null_in_the_routing_row() -> None:
    """Behaviour R5: a cost is measured or null, never made up."""
    row = routing_row(a_reflection())

    assert (row.task_class, row.model, row.provider_pfx, row.cost_usd) == (None, None, None, None)
    assert row.pr_number == 412
